"""From the graph of one arch to one that holds for all archs of a space.

The exporter writes the graph of one arch, so some integers in it belong to that arch (the number
of heads in a reshape). They are found by exporting a second arch and comparing the two graphs
node by node: what follows from a weight's shape is left to the cut, a size in a reshape is left
to be inferred, anything else is refused.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from models.onnx.graph import set_convolution

BATCH = "batch"
"""Name of the axis of images in a graph."""


class TemplateError(RuntimeError):
    """A forward pass whose graph cannot be cut for other archs; says which node is in the way."""


def generalize(model: ir.Model, reference: ir.Model) -> None:
    """Make every node hold for all archs, or raise TemplateError naming the one that cannot."""
    nodes, others = list(model.graph), list(reference.graph)
    if [n.op_type for n in nodes] != [n.op_type for n in others]:
        at = next(
            (
                i
                for i, (a, b) in enumerate(zip(nodes, others, strict=False))
                if a.op_type != b.op_type
            ),
            -1,
        )
        raise TemplateError(f"the largest and the smallest arch differ in operators at {nodes[at]}")
    shapes = _BatchShapes(model)
    for node, other in zip(nodes, others, strict=True):
        _compare_attributes(node, other)
        for position, (value, its) in enumerate(zip(node.inputs, other.inputs, strict=True)):
            if value is None or its is None or value.const_value is None:
                continue
            assert its.const_value is not None
            here, there = value.const_value.numpy(), its.const_value.numpy()
            if np.array_equal(here, there):
                continue
            if node.op_type != "Reshape" or position != 1 or here.shape != there.shape:
                raise TemplateError(f"a constant depends on the arch: {value.name} of {node}")
            node.replace_input_with(1, shapes.inferred(node, here, here != there))
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
    model.graph.sort()


def _compare_attributes(node: ir.Node, other: ir.Node) -> None:
    """Equal, or for a convolution what the cut would make of them."""
    mine, its = (ir.to_proto(n) for n in (node, other))
    if node.op_type == "Conv":
        weight = other.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        set_convolution(mine, tuple(int(size) for size in weight.shape.numpy()))
    if list(mine.attribute) != list(its.attribute):
        raise TemplateError(f"attributes depend on the arch: {node} against {other}")


class _BatchShapes:
    """Shapes for reshapes in which the batch is copied and one elastic size is inferred."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._batch: ir.Value | None = None
        self._made: dict[tuple[int | str, ...], ir.Value] = {}

    def inferred(self, node: ir.Node, shape: np.ndarray, elastic: np.ndarray) -> ir.Value:
        """``shape`` with -1 where it is ``elastic``, for one node."""
        if elastic.sum() != 1:
            raise TemplateError(f"two sizes depend on the arch in {shape.tolist()} of {node}")
        sizes: list[int | str] = [-1 if e else int(s) for e, s in zip(elastic, shape, strict=True)]
        for axis in np.flatnonzero((shape == -1) & ~elastic):
            # -1 was what the exporter wrote for the only size that it did not know
            before, after = node.inputs[0], node.outputs[0]
            assert before is not None
            if not _is_batch(after, axis):
                raise TemplateError(f"two sizes are open in {shape.tolist()} of {node}")
            sizes[axis] = 0 if _is_batch(before, axis) else BATCH
        key = tuple(sizes)
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, sizes: tuple[int | str, ...]) -> ir.Value:
        name = "shape_" + "_".join(str(size).replace("-1", "any") for size in sizes)
        if BATCH not in sizes:
            return self._constant(name, [int(size) for size in sizes])
        if self._batch is None:
            read = ir.node("Shape", [self._graph.inputs[0]], {"start": 0, "end": 1})
            read.outputs[0].name = "batch_size"
            self._graph.append(read)
            self._batch = read.outputs[0]
        parts = [
            self._batch if size == BATCH else self._constant(f"size_{size}", [int(size)])
            for size in sizes
        ]
        joined = ir.node("Concat", parts, {"axis": 0})
        joined.outputs[0].name = name
        self._graph.append(joined)
        return joined.outputs[0]

    def _constant(self, name: str, values: list[int]) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=name)
            self._graph.initializers.add(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]


def _is_batch(value: ir.Value, axis: int | np.integer) -> bool:
    shape = value.shape
    return shape is not None and bool(axis < len(shape)) and str(shape[int(axis)]) == BATCH
