"""cifar-vit: 9.8 to 37.5 MFLOPs at 32x32.

==========  ==================================
embed_dim   64, 80, 96
depth       4, 5, 6
num_heads   2, 3 (of width 32), for each block
mlp_ratio   1.5, 2, 2.5, for each block
==========  ==================================

Ours, not the paper's: its ViT spaces start at 1 GFLOPs. Patches of 4 pixels give 64 tokens, as in
the compact transformers trained on CIFAR from scratch (arXiv 2104.05704).
"""

from __future__ import annotations

from models.space.search_space import SearchSpace
from models.spaces.vit import vit_space


def cifar_vit(num_classes: int = 10) -> SearchSpace:
    """The small counterpart of ``vit-tiny``, for experiments on one machine."""
    return vit_space(
        "cifar-vit",
        image=32,
        patch=4,
        embed_dim=(64, 80, 96),
        depth=(4, 5, 6),
        num_heads=(2, 3),
        mlp_ratio=(1.5, 2, 2.5),
        head_dim=32,
        num_classes=num_classes,
    )
