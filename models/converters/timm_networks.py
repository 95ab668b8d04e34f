"""Networks of timm that are an arch of a space: EfficientNet-B0 in bignas, DeiT in AutoFormer's.

They fill a part of the supernet; the rest begins at random. DeiT (-Ti in ``vit-tiny``, -S in
``vit-small``) classifies by its class token and the spaces by the mean over patches: its classifier
is left behind. Its queries, keys and values are one table, of which each has a third.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from models.converters import Converted
from models.converters.checkpoint import named, take
from models.converters.efficientnet_lite import TIMM_OUTSIDE, TIMM_PARTS
from models.space.arch import Arch, Choice
from models.space.search_space import SearchSpace
from models.spaces import get_space
from models.spaces.mbconv import MBConvLayout
from models.spaces.published import FOLDER
from models.spaces.vit import VitLayout

VIT_OUTSIDE = {
    "patches": "patch_embed.proj",
    "class_token": "cls_token",
    "positions": "pos_embed",
    "norm": "norm",
}
VIT_PARTS = {
    "attention_norm": "norm1",
    "attention.project": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.expand": "mlp.fc1",
    "mlp.project": "mlp.fc2",
}
PACKED = ("query", "key", "value")
"""In the order of their rows in ``attn.qkv``."""


def fit_efficientnet_b0(tensors: Mapping[str, np.ndarray], space_name: str) -> Converted:
    """Timm's ``efficientnet_b0`` as an arch of bignas; torch's padding, so nothing is turned.

    Raises ValueError naming a tensor that is missing, has another shape, or cannot be carried.
    """
    bias = tensors.get("classifier.bias")
    if bias is None or bias.ndim != 1:
        raise ValueError("the checkpoint is not timm's efficientnet_b0: it has no classifier.bias")
    space = get_space(space_name, len(bias))
    arch = space.arch_from_json(json.loads((FOLDER / "efficientnet-b0.json").read_text()))
    names = _efficientnet_names(space)
    wanted = {}
    for weight in space.weights:
        if weight.block is None or weight.block.present(arch):
            part, _, tail = weight.name.rpartition(".")
            conv, norm = names[part.removesuffix(".norm")]
            where = norm if part.endswith(".norm") else conv
            wanted[weight.name] = (f"{where}.{tail}", weight.shape_at(arch))
    taken = take(tensors, wanted)
    norms = {norm for _, norm in names.values()}
    read = {name for name, _ in wanted.values()}
    _refuse_the_rest(
        {n for n in tensors if n not in read and n.rpartition(".")[0] not in norms}, space
    )
    return Converted(space, taken, {}, part=arch)


def _efficientnet_names(space: SearchSpace) -> Mapping[str, tuple[str, str]]:
    """Each layer here -> its name and that of its BatchNorm there."""
    assert isinstance(space.layout, MBConvLayout)
    names = dict(TIMM_OUTSIDE)
    for block in space.layout.blocks:
        where = block.name.replace("stages", "blocks")
        for ours, (conv, norm) in TIMM_PARTS[block.expands].items():
            names[f"{block.name}.{ours}"] = f"{where}.{conv}", f"{where}.{norm}"
        for part in ("reduce", "expand"):
            names[f"{block.name}.squeeze.{part}"] = f"{where}.se.conv_{part}", ""
    return names


def fit_deit(tensors: Mapping[str, np.ndarray], space_name: str) -> Converted:
    """Timm's ``deit_tiny_patch16_224`` or ``deit_small_patch16_224`` as an arch of a ViT space.

    Raises ValueError naming a tensor that is missing, has another shape, or cannot be carried:
    a distilled DeiT has a second token, for which there is no place.
    """
    space = get_space(space_name)
    assert isinstance(space.layout, VitLayout)
    embedding = tensors.get("cls_token")
    if embedding is None or embedding.ndim != 3:
        raise ValueError("the checkpoint is not a ViT of timm: it has no cls_token")
    arch = _deit_arch(space, embedding.shape[-1], tensors)
    taken: dict[str, np.ndarray] = {}
    read: set[str] = set()
    for weight in space.weights:
        is_there = weight.block is None or weight.block.present(arch)
        if not is_there or weight.name.startswith("classifier."):
            continue
        theirs, part = _vit_name(weight.name)
        shape = weight.shape_at(arch)
        whole = (3 * shape[0], *shape[1:]) if part is not None else shape
        leading = {"cls_token": (1, 1), "pos_embed": (1,)}.get(theirs, ())
        array = take(tensors, {weight.name: (theirs, (*leading, *whole))})[weight.name]
        array = array.reshape(whole)
        taken[weight.name] = array if part is None else np.split(array, 3)[part]
        read.add(theirs)
    _refuse_the_rest(set(tensors) - read - {"head.weight", "head.bias"}, space)
    return Converted(space, taken, {}, part=arch)


def _deit_arch(space: SearchSpace, width: int, tensors: Mapping[str, np.ndarray]) -> Arch:
    """Which arch it is. Raises ValueError where a size is not a choice of the space."""
    assert isinstance(space.layout, VitLayout)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    hidden = tensors.get("blocks.0.mlp.fc1.bias", np.zeros(0)).shape[0]
    choices: dict[str, Choice] = {"embed_dim": width, "depth": depth}
    for index in range(len(space.layout.blocks)):
        choices[f"num_heads.{index}"] = width // space.layout.head_dim
        choices[f"mlp_ratio.{index}"] = hidden / width
    try:
        return space.arch(choices)
    except ValueError as error:
        raise ValueError(f"the checkpoint does not fit {space.name}: {error}") from None


def _vit_name(ours: str) -> tuple[str, int | None]:
    """The tensor there, and which third of it, if it is packed."""
    if ours in VIT_OUTSIDE:
        return VIT_OUTSIDE[ours], None
    if not ours.startswith("blocks."):
        part, _, tail = ours.rpartition(".")
        return f"{VIT_OUTSIDE[part]}.{tail}", None
    blocks, index, rest = ours.split(".", 2)
    part, _, tail = rest.rpartition(".")
    for third, name in enumerate(PACKED):
        if part == f"attention.{name}":
            return f"{blocks}.{index}.attn.qkv.{tail}", third
    return f"{blocks}.{index}.{VIT_PARTS[part]}.{tail}", None


def _refuse_the_rest(left: set[str], space: SearchSpace) -> None:
    if left:
        raise ValueError(
            f"the checkpoint has {named(left)}, for which space {space.name} has no place; "
            "it is of another network"
        )
