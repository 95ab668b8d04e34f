"""Checkpoints of AutoFormer's supernets (microsoft/Cream), trained with relative position.

Three things are laid out differently there:

- Queries, keys and values are one table, of which rows 0, 3, 6... are the queries, rows 1, 4, 7...
  the keys and rows 2, 5, 8... the values. They become three tables.
- Their bias is cut plainly instead: with n channels of heads the first n entries are the queries',
  the next n the keys', the next n the values'. So an entry's role depends on the number of heads.
  The queries' nest. The keys' add the same to every logit of a query, which softmax ignores: those
  of the most heads are kept. The values' differ from number to number and go to a table of steps
  (``stepped_bias`` in ``models.spaces.vit``), which holds all of them.
- Supernets are allocated wider than any choice; what no subnet uses is left behind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.converters import Converted
from models.converters.checkpoint import Checkpoint, named, take
from models.space.search_space import SearchSpace
from models.spaces import get_space

SPACE_OF_WIDTH = {256: "vit-tiny", 448: "vit-small", 640: "vit-base"}
"""Width at which each supernet is allocated -> its space."""

OUTSIDE = {
    "patches.weight": "patch_embed_super.proj.weight",
    "patches.bias": "patch_embed_super.proj.bias",
    "class_token": "cls_token",
    "positions": "pos_embed",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
}
PARTS = {
    "attention_norm": "attn_layer_norm",
    "attention.project": "attn.proj",
    "attention.relative.key_rows": "attn.rel_pos_embed_k.embeddings_table_v",
    "attention.relative.key_columns": "attn.rel_pos_embed_k.embeddings_table_h",
    "attention.relative.value_rows": "attn.rel_pos_embed_v.embeddings_table_v",
    "attention.relative.value_columns": "attn.rel_pos_embed_v.embeddings_table_h",
    "mlp_norm": "ffn_layer_norm",
    "mlp.expand": "fc1",
    "mlp.project": "fc2",
}
"""Within a block: ours -> theirs."""

PACKED = ("query", "key", "value")
"""In the order of their rows."""


def convert_autoformer(checkpoint: Checkpoint) -> Converted:
    """Read a supernet's checkpoint, with as many classes as it has.

    Raises ValueError naming a tensor that is missing, has another shape, or cannot be carried.
    """
    tensors = checkpoint.tensors
    patches, bias = tensors.get("patch_embed_super.proj.bias"), tensors.get("head.bias")
    if patches is None or bias is None or bias.ndim != 1 or patches.ndim != 1:
        raise ValueError(
            f"{checkpoint.path} is not an AutoFormer supernet: it should have "
            "patch_embed_super.proj.bias and head.bias"
        )
    allocated = len(patches)
    if allocated not in SPACE_OF_WIDTH:
        widths = ", ".join(f"{width} ({name})" for width, name in SPACE_OF_WIDTH.items())
        raise ValueError(
            f"{checkpoint.path} is {allocated} wide; AutoFormer's supernets are: {widths}"
        )
    space = get_space(f"{SPACE_OF_WIDTH[allocated]}-autoformer", len(bias))
    shapes = checkpoint_shapes(space, allocated)
    taken = take(tensors, {name: (name, shape) for name, shape in shapes.items()})
    left = set(tensors) - set(shapes)
    if left:
        raise ValueError(
            f"the checkpoint has {named(left)}, for which space {space.name} has no place; "
            "it is of another network"
        )
    weights = {weight.name: carry(space, weight.name, taken) for weight in space.weights}
    return Converted(space, weights, {})


def checkpoint_shapes(space: SearchSpace, allocated: int) -> dict[str, tuple[int, ...]]:
    """What a supernet's checkpoint holds, when it is allocated ``allocated`` channels wide."""
    used = int(space.largest["embed_dim"])
    shapes: dict[str, tuple[int, ...]] = {}
    for weight in space.weights:
        packed = _packed(weight.name)
        if packed is not None:
            tail = (allocated,) if weight.name.endswith(".weight") else ()
            attended = weight.shape_at(space.largest)[0 if tail else -1]
            shapes[packed] = (3 * attended, *tail)
            continue
        widen = {used: allocated, 4 * used: 4 * allocated}
        shape = tuple(
            widen.get(size(space.largest), size(space.largest))
            if "embed_dim" in size.decisions
            else size(space.largest)
            for size in weight.shape
        )
        leading = {"class_token": (1, 1), "positions": (1,)}.get(weight.name, ())
        shapes[theirs(weight.name)] = (*leading, *shape)
    return shapes


def theirs(ours: str) -> str:
    """The name there of a weight here that is not packed."""
    if ours in OUTSIDE:
        return OUTSIDE[ours]
    blocks, index, rest = ours.split(".", 2)
    part, _, tail = rest.rpartition(".")
    return f"{blocks}.{index}.{PARTS[rest] if rest in PARTS else f'{PARTS[part]}.{tail}'}"


def _packed(ours: str) -> str | None:
    """The name there of the packed tensor that a weight here is a part of."""
    pieces = ours.split(".")
    if len(pieces) == 5 and pieces[2] == "attention" and pieces[3] in PACKED:
        return f"{pieces[0]}.{pieces[1]}.attn.qkv.{pieces[4]}"
    return None


def carry(space: SearchSpace, ours: str, taken: Mapping[str, np.ndarray]) -> np.ndarray:
    """One weight of ours at the size of our supernet, from what was taken of the checkpoint."""
    shape = space.weight[ours].shape_at(space.largest)
    packed = _packed(ours)
    if packed is None:
        array = taken[theirs(ours)]
        array = array.reshape(array.shape[array.ndim - len(shape) :])
        return np.ascontiguousarray(array[tuple(slice(0, size) for size in shape)])
    pieces = ours.split(".")
    part = PACKED.index(pieces[3])
    if pieces[4] == "weight":
        return np.ascontiguousarray(taken[packed][part::3, : shape[1]])
    bias = taken[packed]
    if pieces[3] == "value":
        return _steps(space, bias, pieces[1], shape)
    return bias[part * shape[0] : (part + 1) * shape[0]].copy()


def _steps(space: SearchSpace, bias: np.ndarray, index: str, shape: tuple[int, ...]) -> np.ndarray:
    """The table whose first rows add up to the values' bias of each number of heads."""
    choices = space.decision[f"num_heads.{index}"].choices
    head_dim = shape[1] // int(choices[-1])
    table = np.zeros(shape, np.float32)
    for row, heads in enumerate(choices):
        channels = int(heads) * head_dim
        wanted = bias[2 * channels : 3 * channels]
        table[row, :channels] = wanted - table[:row, :channels].sum(0)
    return table
