"""The ONNX graph of a subnet, cut from its space's template in milliseconds. No torch here.

A template (``models.template``) is the graph of a largest subnet without its weights. Cutting it
for an arch drops the nodes of absent blocks and of weights applied nowhere, declares the weights at
the arch's shapes, and corrects the few attributes of a convolution that repeat its weight's shape.
Everything else in a template holds for every arch; its exporter has made sure of that.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import onnx

from models.arch import Arch
from models.space import SearchSpace, Weight
from models.weights import weight_slices

INPUT, OUTPUT = "images", "logits"
BLOCK_KEY = "block"
"""In a node's metadata: the block, or the conditional weight's module, that it is dropped with."""
BLOCKS_KEY = "blocks"
"""In a template's metadata: JSON, block -> [the value it reads, the value it gives], in order."""
PERMUTATIONS_KEY = "permutations"
"""In a template's metadata: JSON, weight -> axes, for weights that the graph reads transposed."""

_NO_FILE = "given-by-add_external_initializers"
"""Where weights that are not stored are said to be; no such file is ever looked for."""


def deployed_shapes(space: SearchSpace, arch: Arch) -> dict[str, tuple[int, ...]]:
    """Shapes of a subnet's weights as deployed, by name: BatchNorms folded into biases.

    The names and shapes of what ``models.weights.fold_norms`` gives, without the weights that are
    applied nowhere.
    """
    idle = {weight.name for weight in conditional_weights(space) if not applied(weight, arch)}
    shapes = {
        name: tuple(axis.stop - axis.start for axis in axes)
        for name, axes in weight_slices(space, arch).items()
        if name not in idle
    }
    for norm in space.norms:
        if f"{norm.name}.weight" in shapes:
            del shapes[f"{norm.name}.weight"]
            shapes[f"{norm.conv}.bias"] = shapes.pop(f"{norm.name}.bias")
    return shapes


@lru_cache(maxsize=64)
def conditional_weights(space: SearchSpace) -> tuple[Weight, ...]:
    """Weights that some archs apply at no position at all, such as a shortcut's convolution."""

    def positions(weight: Weight) -> Iterator[int]:
        assert weight.positions is not None
        choices = (space.decision[name].choices for name in weight.positions.decisions)
        return (weight.positions.rule(*some) for some in itertools.product(*choices))

    return tuple(w for w in space.weights if w.positions is not None and 0 in positions(w))


def applied(weight: Weight, arch: Arch) -> bool:
    """Whether an arch applies a conditional weight; else its node passes its input on."""
    assert weight.positions is not None
    return weight.positions(arch) > 0


def module_of(weight: Weight) -> str:
    """The module whose node applies a conditional weight."""
    return weight.name.removesuffix(".weight")


def cut_graph(
    template: onnx.ModelProto,
    space: SearchSpace,
    arch: Arch,
    weights: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """The graph of ``arch``: ``images`` float32 (batch, 3, side, side) -> ``logits``.

    ``weights`` are the subnet's as deployed (``slice_weights``, ``fold_norms``), float32; they are
    stored in the graph. With None every weight is declared but not stored, and ONNX Runtime gets
    the arrays of ``graph_weights`` from ``SessionOptions.add_external_initializers``; with
    ``session.disable_prepacking`` sessions then share them. (Not from ``add_initializer``: ONNX
    Runtime 1.31 rewrites graphs before it looks there, and computes with what is in the file.)
    Such a graph is not valid by itself.

    Raises ValueError naming a weight that is missing or has another shape or type.
    """
    shapes = deployed_shapes(space, arch)
    permutations = _permutations(template)
    model = onnx.ModelProto()
    model.CopyFrom(template)
    del model.metadata_props[:]
    graph = model.graph

    _drop_blocks(graph, json.loads(_metadata(template, BLOCKS_KEY)), _absent(space, arch))
    used: set[str] = set()
    for node in graph.node:
        used.update(node.input)
        if node.op_type == "Conv":
            set_convolution(node, shapes[node.input[1]])
    side = space.resolution(arch)
    for dimension in graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = side

    constants = [t for t in template.graph.initializer if t.name in used and t.name not in shapes]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    for name, shape in shapes.items():
        axes = permutations.get(name)
        tensor = graph.initializer.add()
        tensor.name = name
        tensor.data_type = onnx.TensorProto.FLOAT
        tensor.dims.extend(shape if axes is None else [shape[axis] for axis in axes])
        if weights is not None:
            weight = _checked(weights, name, shape)
            tensor.raw_data = (weight if axes is None else weight.transpose(axes)).tobytes()
        else:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=_NO_FILE)
    return model


def graph_weights(
    template: onnx.ModelProto,
    space: SearchSpace,
    arch: Arch,
    weights: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """A subnet's deployed weights as its graph reads them: contiguous float32, some transposed.

    Arrays that already are as they should be are not copied. Raises ValueError as ``cut_graph``.
    """
    permutations = _permutations(template)
    arrays = {}
    for name, shape in deployed_shapes(space, arch).items():
        weight = _checked(weights, name, shape)
        axes = permutations.get(name)
        arrays[name] = np.ascontiguousarray(weight if axes is None else weight.transpose(axes))
    return arrays


def set_convolution(node: onnx.NodeProto, shape: tuple[int, ...]) -> None:
    """Correct the attributes of a convolution that follow from its weight's shape.

    The kernel's size; padding, where the template's keeps the size of the map; groups, where each
    channel is a group.
    """
    attributes = {attribute.name: attribute for attribute in node.attribute}
    kernel, pads, group = (attributes[name] for name in ("kernel_shape", "pads", "group"))
    if any(pads.ints):
        pads.ints[:] = [size // 2 for size in shape[2:]] * 2
    kernel.ints[:] = shape[2:]
    if group.i > 1:
        group.i = shape[0]


def _checked(weights: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in weights:
        raise ValueError(f"weight {name} is missing; this arch needs it with shape {shape}")
    weight = weights[name]
    if weight.shape != shape or weight.dtype != np.float32:
        raise ValueError(
            f"weight {name} is {weight.dtype} {weight.shape}; this arch needs float32 {shape}"
        )
    return weight


def _metadata(template: onnx.ModelProto, key: str) -> str:
    for entry in template.metadata_props:
        if entry.key == key:
            return entry.value
    raise ValueError(f"this ONNX model is no template: its metadata has no {key!r}")


def _permutations(template: onnx.ModelProto) -> dict[str, list[int]]:
    return json.loads(_metadata(template, PERMUTATIONS_KEY))


def _absent(space: SearchSpace, arch: Arch) -> set[str]:
    blocks = {weight.block for weight in space.weights if weight.block is not None}
    absent = {block.name for block in blocks if not block.present(arch)}
    return absent | {module_of(w) for w in conditional_weights(space) if not applied(w, arch)}


def _drop_blocks(graph: onnx.GraphProto, blocks: Mapping[str, list[str]], absent: set[str]) -> None:
    """Remove the nodes of absent blocks; who read what a block gives reads what it read."""
    if not absent:
        return
    instead: dict[str, str] = {}
    for name, (reads, gives) in blocks.items():
        if name in absent:
            instead[gives] = instead.get(reads, reads)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if any(entry.key == BLOCK_KEY and entry.value in absent for entry in node.metadata_props):
            del graph.node[index]
            continue
        for position, value in enumerate(node.input):
            if value in instead:
                node.input[position] = instead[value]
