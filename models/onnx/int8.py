"""A subnet in 8-bit integers: the nodes of ONNX that say so, around those of its graph. No torch.

Activations are unsigned, 8 bits, with one scale for each value; weights are signed, with a scale
for each channel that they make. That is what the VNNI instructions of x86 multiply. Processors
before them add the products of two neighbours in 16 bits, which may overflow: so the scale of a
channel is such that no two weights that may be neighbours do (``weight_scales``), and every
processor computes the same (docs/runtimes.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.onnx.graph_template import INPUT, OUTPUT

_ACTIVATION_MOST, _WEIGHT_MOST = 255, 127
_BIAS_MOST, _LEAST_SCALE = 2**30, 1e-30
_ACTIVATIONS = ("Relu", "Clip")
_WEIGHTED = ("Conv", "Gemm")


def quantized_values(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The values of a graph that are stored in 8 bits, in its order; the images come first.

    All but the logits, and what an activation that cuts off reads: ONNX Runtime makes that one step
    with the convolution before it.
    """
    nodes = list(nodes)
    inside = {node.input[0] for node in nodes if node.op_type in _ACTIVATIONS}
    return [INPUT, *(n.output[0] for n in nodes if n.output[0] not in {*inside, OUTPUT})]


def quantize(model: onnx.ModelProto, ranges: np.ndarray) -> onnx.ModelProto:
    """The same subnet in 8-bit integers, self-contained; images and logits stay float32.

    ranges: (values, 2), of its own values (``models.quantize``).
    """
    names = quantized_values(model.graph.node)
    assert len(names) == len(ranges), "ranges of another subnet"
    grids = dict(zip(names, _grids(ranges), strict=True))
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.ClearField("node")
    made.graph.ClearField("initializer")
    writer = _Writer(made.graph)
    writer.value(INPUT, grids[INPUT])
    for node in model.graph.node:
        reads = [f"{name}.float" if name in grids else name for name in node.input]
        if node.op_type in _WEIGHTED:
            weights = [numpy_helper.to_array(arrays.pop(name)) for name in node.input[1:]]
            reads[1:] = writer.weights(node.input[1:], weights, grids[node.input[0]].step)
        copied = made.graph.node.add()
        copied.CopyFrom(node)
        copied.input[:] = reads
        if (name := node.output[0]) in grids:
            writer.value(name, grids[name])
    made.graph.initializer.extend(arrays.values())
    return made


@dataclass(frozen=True)
class _Grid:
    """What the whole numbers of a value stand for: those of 0, and of the next."""

    step: np.float32
    zero: np.uint8


def _grids(ranges: np.ndarray) -> list[_Grid]:
    """Of values that range so far; 0, with which convolutions pad, is among the whole numbers."""
    least, greatest = np.minimum(ranges[:, 0], 0), np.maximum(ranges[:, 1], 0)
    steps = ((greatest - least) / _ACTIVATION_MOST).astype(np.float32)
    steps[steps < _LEAST_SCALE] = 1.0  # a value that is always 0
    zeros = np.round(-least / steps).astype(np.uint8)
    return [_Grid(step, zero) for step, zero in zip(steps, zeros, strict=True)]


@dataclass(frozen=True)
class _Writer:
    """Adds to a graph what is whole, and the nodes that say what it stands for (``NAME.float``)."""

    graph: onnx.GraphProto

    def value(self, name: str, grid: _Grid) -> None:
        """An activation, from float32 to whole numbers and back."""
        told = [
            self._store(f"{name}.scale", np.array(grid.step)),
            self._store(f"{name}.zero", np.array(grid.zero)),
        ]
        whole = f"{name}.int8"
        self.graph.node.append(helper.make_node("QuantizeLinear", [name, *told], [whole]))
        self._dequantize(name, [whole, *told])

    def weights(
        self, names: Sequence[str], arrays: Sequence[np.ndarray], step: np.float32
    ) -> list[str]:
        """A weight, and its bias if there is one, for an input of this step; what reads them."""
        (name, *of_bias), (weight, *bias) = names, arrays
        scales = weight_scales(weight, step, *bias)
        whole = weight / scales.reshape(-1, *[1] * (weight.ndim - 1))
        whole = np.rint(whole, out=whole).astype(np.int8)
        told = [
            self._store(f"{name}.int8", whole),
            self._store(f"{name}.scale", scales),
            self._store(f"{name}.zero", np.zeros(len(scales), np.int8)),
        ]
        reads = [self._dequantize(name, told)]
        for name, array in zip(of_bias, bias, strict=True):
            both = (step * scales).astype(np.float32)
            whole = np.round(array / both).astype(np.int32)
            told = [self._store(f"{name}.int32", whole), self._store(f"{name}.scale", both)]
            reads.append(self._dequantize(name, told))
        return reads

    def _store(self, name: str, array: np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _dequantize(self, name: str, inputs: Sequence[str]) -> str:
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], axis=0)
        self.graph.node.append(node)
        return node.output[0]


def weight_scales(
    weight: np.ndarray, step: np.float32, bias: np.ndarray | None = None
) -> np.ndarray:
    """The scale of each channel, the weight's first axis, for an input that has this one.

    Weights are -127 to 127, and so is the sum of two that may be neighbours, before they are
    rounded; after that it is 128 at most, and 128 times the largest activation has 16 bits. The
    bias is whole numbers of the product of both scales, 32 bits of them: a channel whose weights
    are all but zero has a scale that its bias allows.
    """
    alone = _farthest(weight.reshape(len(weight), -1))
    scales = np.maximum(alone, neighbours(weight)) / _WEIGHT_MOST
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias) / (step * _BIAS_MOST))
    scales[scales < _LEAST_SCALE] = 1.0  # nothing is there, or too little for float32
    return scales.astype(np.float32)


def neighbours(weight: np.ndarray) -> np.ndarray:
    """How much the weights of two neighbours are together, at most, for each channel.

    Of a product of matrices (a convolution of one pixel, too) neighbours are in the order of
    channels. Of other convolutions a runtime chooses the order: any two may be neighbours.
    """
    flat = weight.reshape(len(weight), -1)
    if flat.shape[1] == 1:
        return np.abs(flat[:, 0])
    if flat.shape[1] == weight.shape[1]:
        return _farthest(flat[:, 1:] + flat[:, :-1])
    ordered = np.sort(flat, axis=1)
    return np.maximum(ordered[:, -2:].clip(min=0).sum(1), -ordered[:, :2].clip(max=0).sum(1))


def _farthest(each: np.ndarray) -> np.ndarray:
    """From 0, of each row."""
    return np.maximum(each.max(1), -each.min(1))
