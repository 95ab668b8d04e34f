"""vit-tiny, vit-small, vit-base: the ViT spaces of AutoFormer and of the ShiftNAS paper.

AutoFormer (arXiv 2107.00651, table 1, and the configurations published with it). One width and one
depth for the network, heads (64 wide) and MLP ratio for each block; 224x224, patches of 16.

===========  ==============  =============  =============
decision     vit-tiny        vit-small      vit-base
===========  ==============  =============  =============
embed_dim    192, 216, 240   320, 384, 448  528, 576, 624
depth        12, 13, 14      12, 13, 14     14, 15, 16
num_heads    3, 4            5, 6, 7        8, 9, 10
mlp_ratio    3, 3.5, 4       3, 3.5, 4      3, 3.5, 4
===========  ==============  =============  =============

Where the sources conflict: the published tiny subnet uses ratio 3, which the configuration of its
supernet (3.5, 4) lacks, so it is a choice here, as in NNI's preset. The base supernet's
configuration has 9 and 10 heads; its subnets' configuration, NNI, mmrazor and this project have 8
too.
The published supernets are allocated wider than any choice (256 and 640); ours are not.

Three variants of each: plain, ``-rpe`` with relative position up to 14 patches (how the published
checkpoints were trained), and ``-autoformer``, which also carries those checkpoints' biases of the
values, which are not shared between numbers of heads (``models.converters.autoformer``). So a
converted subnet has the FLOPs of ``-rpe`` and slightly more parameters: the values' bias once more
for each smaller number of heads (the published tiny subnet: 5,868,200 instead of 5,867,944).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from models.space.search_space import SearchSpace
from models.spaces.vit import vit_space


@dataclass(frozen=True)
class Row:
    """A column of the table above, less what all three share."""

    embed_dim: tuple[int, ...]
    depth: tuple[int, ...]
    num_heads: tuple[int, ...]


ROWS = {
    "vit-tiny": Row((192, 216, 240), (12, 13, 14), (3, 4)),
    "vit-small": Row((320, 384, 448), (12, 13, 14), (5, 6, 7)),
    "vit-base": Row((528, 576, 624), (14, 15, 16), (8, 9, 10)),
}
REACH = 14
"""Distances in patches that relative position tells apart: as many as the image has."""


def autoformer(name: str, variant: str = "", *, num_classes: int = 1000) -> SearchSpace:
    """The space ``name`` of the table; ``variant`` is empty, ``-rpe`` or ``-autoformer``."""
    row = ROWS[name]
    return vit_space(
        name + variant,
        image=224,
        patch=16,
        embed_dim=row.embed_dim,
        depth=row.depth,
        num_heads=row.num_heads,
        mlp_ratio=(3, 3.5, 4),
        head_dim=64,
        num_classes=num_classes,
        relative_position=REACH if variant else None,
        stepped_bias=variant == "-autoformer",
    )


vit_tiny = partial(autoformer, "vit-tiny")
vit_tiny_rpe = partial(autoformer, "vit-tiny", "-rpe")
vit_tiny_autoformer = partial(autoformer, "vit-tiny", "-autoformer")
vit_small = partial(autoformer, "vit-small")
vit_small_rpe = partial(autoformer, "vit-small", "-rpe")
vit_small_autoformer = partial(autoformer, "vit-small", "-autoformer")
vit_base = partial(autoformer, "vit-base")
vit_base_rpe = partial(autoformer, "vit-base", "-rpe")
vit_base_autoformer = partial(autoformer, "vit-base", "-autoformer")
