"""The ONNX graph of a subnet, cut from its space's template in milliseconds. No torch here.

A template (``template.py``) is the graph of a largest subnet without its weights. Cutting it
for an arch drops the nodes of absent blocks and of weights applied nowhere, declares the weights at
the arch's shapes, and corrects the few attributes of a convolution that repeat its weight's shape.
Nodes that only rearrange weights are computed by the cut: the graph reads what comes out of them.
Everything else in a template holds for every arch; its exporter has made sure of that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import onnx

from models.onnx.graph_template import Step, Template
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.sizes import Weight
from models.space.weights import weight_slices

_NO_FILE = "given-by-add_external_initializers"
"""Where weights that are not stored are said to be; no such file is ever looked for."""

Arrays = Mapping[str, np.ndarray]


def cut_graph(
    template: Template, space: SearchSpace, arch: Arch, weights: Arrays
) -> onnx.ModelProto:
    """The graph of ``arch``, self-contained: ``images`` float32 (batch, 3, side, side) -> logits.

    ``weights`` are the subnet's as deployed (``slice_weights``, ``fold_norms``), float32. Raises
    ValueError naming a weight that is missing or has another shape or type.
    """
    arrays = graph_weights(template, space, arch, weights)
    del weights
    model = cut_graph_apart(template, space, arch, arrays)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = arrays.pop(tensor.name).tobytes()  # lest all be here twice
    return model


def graph_weights(
    template: Template, space: SearchSpace, arch: Arch, weights: Arrays
) -> dict[str, np.ndarray]:
    """What a subnet's graph reads instead of ``weights``, by name: some transposed or rearranged.

    Views mostly, which need not be contiguous, so that what is shared already is not copied again:
    for one template, a name and a shape tell which elements of the supernet's weights an array
    has, unless BatchNorms were folded into it. Raises ValueError as ``cut_graph``.
    """
    arrays = {}
    for name, shape in deployed_shapes(space, arch).items():
        if name not in weights:
            raise ValueError(f"weight {name} is missing; this arch needs it with shape {shape}")
        weight = weights[name]
        if weight.shape != shape or weight.dtype != np.float32:
            raise ValueError(
                f"weight {name} is {weight.dtype} {weight.shape}; this arch needs float32 {shape}"
            )
        axes = template.permutations.get(name)
        arrays[name] = weight if axes is None else weight.transpose(axes)
    absent = _absent(space, arch)
    for made in template.rearranged:
        if made.block not in absent:
            arrays[made.name] = made.compute(arrays)
    return {name: array for name, array in arrays.items() if name in template.reads}


def cut_graph_apart(
    template: Template, space: SearchSpace, arch: Arch, arrays: Arrays
) -> onnx.ModelProto:
    """The same graph with every weight declared but not stored; ``arrays`` are ``graph_weights``.

    ONNX Runtime gets them (as OrtValues; contiguous, and alive as long as the session) from
    ``SessionOptions.add_external_initializers``; with ``session.disable_prepacking`` it computes
    with them where they are, so that sessions can share them. (Not from ``add_initializer``: ONNX
    Runtime 1.31 rewrites graphs before it looks there, and computes with what is in the file.)
    """
    absent = _absent(space, arch)
    kept = present_steps(template, space, arch)
    instead: dict[str, str] = {}
    for block, (reads, gives) in template.blocks.items():
        if block in absent:  # who reads what it gives reads what it would read
            instead[gives] = instead.get(reads, reads)

    model = onnx.ModelProto()
    model.CopyFrom(template.frame)
    graph = model.graph
    graph.node.extend(step.proto for step in kept)
    used: set[str] = set()
    for index, step in enumerate(kept):
        used.update(step.inputs)
        if step.convolution:
            set_convolution(graph.node[index], arrays[step.inputs[1]].shape)
        if not instead.keys().isdisjoint(step.inputs):
            graph.node[index].input[:] = [instead.get(name, name) for name in step.inputs]
    side = space.resolution(arch)
    for dimension in graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = side
    graph.initializer.extend(t for name, t in template.constants.items() if name in used)
    for name, array in arrays.items():
        tensor = graph.initializer.add()
        tensor.name = name
        tensor.data_type = onnx.TensorProto.FLOAT
        tensor.dims.extend(array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=_NO_FILE)
    return model


def present_steps(template: Template, space: SearchSpace, arch: Arch) -> list[Step]:
    """The nodes of an arch's graph, in order."""
    absent = _absent(space, arch)
    return [step for step in template.steps if step.block not in absent]


def deployed_shapes(space: SearchSpace, arch: Arch) -> dict[str, tuple[int, ...]]:
    """Shapes of a subnet's weights as deployed, by name: BatchNorms folded into biases.

    The names and shapes of what ``fold_norms`` gives, without the weights that are
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


def _absent(space: SearchSpace, arch: Arch) -> set[str]:
    blocks = {weight.block for weight in space.weights if weight.block is not None}
    absent = {block.name for block in blocks if not block.present(arch)}
    return absent | {module_of(w) for w in conditional_weights(space) if not applied(w, arch)}
