"""Checkpoints of AttentiveNAS and AlphaNet (facebookresearch; one supernet, two trainings).

Only names change: weights, and BatchNorm's running statistics, of which that code uses the first
channels for every arch. Its supernet also stores what no forward pass reads, which is left
behind: counters, statistics kept for logging, and a shortcut convolution in blocks other than
a stage's first. Anything else the file holds is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from models.converters import Converted
from models.converters.checkpoint import Checkpoint, named, take
from models.space.search_space import SearchSpace
from models.spaces import get_space
from models.spaces.mbconv import MBConvLayout

PARTS = {
    "expand": "mobile_inverted_conv.inverted_bottleneck",
    "spatial": "mobile_inverted_conv.depth_conv",
    "project": "mobile_inverted_conv.point_linear",
    "squeeze.reduce": "mobile_inverted_conv.depth_conv.se.fc.reduce",
    "squeeze.expand": "mobile_inverted_conv.depth_conv.se.fc.expand",
    "shortcut.conv": "shortcut.conv.conv",
}
"""Within a block: ours -> theirs."""

BARE = ("squeeze.reduce", "squeeze.expand", "shortcut.conv")
"""Parts without a BatchNorm, whose names there lack the usual two levels of wrapping."""

UNREAD = re.compile(
    r".*\.bn_tracking\.\d+\.\w+|.*\.num_batches_tracked|blocks\.\d+\.shortcut\.conv\.conv\.weight"
)
"""Stored there and never read in evaluation. First blocks' shortcuts are taken before this."""


def convert_attentivenas(checkpoint: Checkpoint) -> Converted:
    """Read a supernet's checkpoint, with as many classes as it has.

    Raises ValueError naming a tensor that is missing, has another shape, or cannot be carried.
    """
    tensors = checkpoint.tensors
    bias = tensors.get("classifier.linear.linear.bias")
    if bias is None or bias.ndim != 1:
        raise ValueError(
            f"{checkpoint.path} is not an AttentiveNAS supernet: it has no "
            "classifier.linear.linear.bias"
        )
    space = get_space("attentivenas", len(bias))
    names = {weight.name: theirs(space, weight.name) for weight in space.weights}
    statistics = {
        f"{norm.name}.{ours}": (f"{theirs(space, norm.name)}.running_{short}", norm.size)
        for norm in space.norms
        for ours, short in (("mean", "mean"), ("variance", "var"))
    }
    wanted = {w.name: (names[w.name], w.shape_at(space.largest)) for w in space.weights}
    wanted |= {ours: (name, (size(space.largest),)) for ours, (name, size) in statistics.items()}
    taken = take(tensors, wanted)
    _refuse_the_rest(tensors, {name for name, _ in wanted.values()})
    return Converted(
        space,
        {name: taken[name] for name in names},
        {n.name: (taken[f"{n.name}.mean"], taken[f"{n.name}.variance"]) for n in space.norms},
    )


def theirs(space: SearchSpace, ours: str) -> str:
    """The name there of a weight or a BatchNorm here."""
    layout = space.layout
    assert isinstance(layout, MBConvLayout)
    position = {block.name: index for index, block in enumerate(layout.blocks)}
    if not ours.startswith("stages."):
        return _outside(ours)
    pieces = ours.split(".")
    here, rest = ".".join(pieces[:3]), ".".join(pieces[3:])
    part = next(part for part in PARTS if rest.startswith(f"{part}."))
    tail = rest.removeprefix(f"{part}.")
    return f"blocks.{position[here]}.{PARTS[part]}.{tail if part in BARE else _wrapped(tail)}"


def _outside(ours: str) -> str:
    """Names outside the blocks."""
    part, _, tail = ours.partition(".")
    if part == "classifier":
        return f"classifier.linear.linear.{tail}"
    layers = {
        "stem": "first_conv",
        "head_expand": "last_conv.final_expand_layer",
        "head": "last_conv.feature_mix_layer",
    }
    return f"{layers[part]}.{_wrapped(tail)}"


def _wrapped(tail: str) -> str:
    """``weight`` -> ``conv.conv.weight``, ``norm...`` -> ``bn.bn...``."""
    return "bn.bn" + tail.removeprefix("norm") if tail.startswith("norm") else f"conv.conv.{tail}"


def _refuse_the_rest(tensors: Mapping[str, np.ndarray], taken: set[str]) -> None:
    left = [name for name in tensors if name not in taken and not UNREAD.fullmatch(name)]
    if left:
        raise ValueError(
            f"the checkpoint has {named(left)}, for which space attentivenas has no place; "
            "it is of another network"
        )
