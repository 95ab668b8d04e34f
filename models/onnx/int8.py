"""A subnet in 8-bit integers: the nodes of ONNX that say so, around those of its graph. No torch.

Activations are unsigned, 8 bits, with one scale for each value; weights are signed, with a scale
for each channel that they make. That is what the VNNI instructions of x86 multiply. Processors
before them add the products of two neighbours in 16 bits, which may overflow: so the scale of a
channel is such that no two weights that may be neighbours do (``weight_scales``), and every
processor computes the same (docs/runtimes.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.onnx.graph_template import INPUT, OUTPUT

PAIR_MOST = 128
"""Of the sum of two neighbouring weights: times the largest activation, 255, it is within 16 bits.
"""
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
    graph = model.graph
    names = quantized_values(graph.node)
    assert len(names) == len(ranges), "ranges of another subnet"
    least, greatest = np.minimum(ranges[:, 0], 0), np.maximum(ranges[:, 1], 0)
    steps = ((greatest - least) / _ACTIVATION_MOST).astype(np.float32)
    steps[steps == 0] = 1.0  # a value that is always 0
    zeros = np.round(-least / steps).astype(np.uint8)
    step_of = dict(zip(names, steps, strict=True))
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.ClearField("node")
    made.graph.ClearField("initializer")
    arrays = {tensor.name: tensor for tensor in graph.initializer}

    def store(name: str, array: np.ndarray) -> str:
        made.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def dequantize(name: str, inputs: Sequence[str]) -> str:
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], axis=0)
        made.graph.node.append(node)
        return node.output[0]

    def store_value(name: str, step: np.float32, zero: np.uint8) -> None:
        scale = [store(f"{name}.scale", np.array(step)), store(f"{name}.zero", np.array(zero))]
        whole = f"{name}.int8"
        made.graph.node.append(helper.make_node("QuantizeLinear", [name, *scale], [whole]))
        dequantize(name, [whole, *scale])

    def store_weights(node: onnx.NodeProto) -> list[str]:
        weight, *bias = (numpy_helper.to_array(arrays.pop(name)) for name in node.input[1:])
        step = step_of[node.input[0]]
        scales = weight_scales(weight, step, bias[0] if bias else None)
        whole = np.round(weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
        name = node.input[1]
        inputs = [
            store(f"{name}.int8", whole),
            store(f"{name}.scale", scales),
            store(f"{name}.zero", np.zeros(len(scales), np.int8)),
        ]
        read = [dequantize(name, inputs)]
        if bias:
            name, both = node.input[2], (step * scales).astype(np.float32)
            whole = np.round(bias[0] / both).astype(np.int32)
            inputs = [store(f"{name}.int32", whole), store(f"{name}.scale", both)]
            read.append(dequantize(name, inputs))
        return read

    left = dict(zip(names, zip(steps, zeros, strict=True), strict=True))
    store_value(INPUT, *left[INPUT])
    for node in graph.node:
        read = [f"{name}.float" if name in left else name for name in node.input]
        if node.op_type in _WEIGHTED:
            read[1:] = store_weights(node)
        copied = made.graph.node.add()
        copied.CopyFrom(node)
        copied.input[:] = read
        if node.output[0] in left:
            store_value(node.output[0], *left[node.output[0]])
    made.graph.initializer.extend(arrays.values())
    return made


def weight_scales(weight: np.ndarray, step: np.float32, bias: np.ndarray | None) -> np.ndarray:
    """The scale of each channel, the weight's first axis, for an input that has this one.

    Weights are -127 to 127, and the sum of two that may be neighbours is not more than
    ``PAIR_MOST``: each is rounded, so it is 127 before. The bias is whole numbers of the product of
    both scales, 32 bits of them: a channel whose weights are all but zero has a scale that its bias
    allows.
    """
    greatest = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), neighbours(weight))
    scales = greatest / _WEIGHT_MOST
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
        return np.abs(flat[:, 1:] + flat[:, :-1]).max(1)
    ordered = np.sort(flat, axis=1)
    return np.maximum(ordered[:, -2:].clip(min=0).sum(1), -ordered[:, :2].clip(max=0).sum(1))
