"""Template: a space's ONNX graph without weights, parsed once for many cuts. No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

INPUT, OUTPUT = "images", "logits"
BLOCK_KEY = "block"
"""In a node's metadata: the block, or the conditional weight's module, that it is dropped with."""
BLOCKS_KEY = "blocks"
"""In a template's metadata: JSON, block -> [the value it reads, the value it gives], in order."""
PERMUTATIONS_KEY = "permutations"
"""In a template's metadata: JSON, weight -> axes, for weights that the graph reads transposed."""


@dataclass(frozen=True, eq=False)
class Step:
    """A node of the graph, with what a cut asks of it read out once."""

    proto: onnx.NodeProto
    block: str | None
    inputs: tuple[str, ...]
    convolution: bool


@dataclass(frozen=True, eq=False)
class Rearranged:
    """A value that follows from weights and constants alone: computed by the cut, not the graph."""

    name: str
    block: str | None
    inputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    rule: Callable[..., np.ndarray]

    def compute(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its value, from the weights and from what was rearranged before it."""
        known = self.constants
        return self.rule(*(known[i] if i in known else arrays[i] for i in self.inputs))


@dataclass(frozen=True, eq=False)
class Template:
    """A parsed template.

    frame: the model without nodes and initializers. reads: what the steps read. blocks: block ->
    the value it reads and the value it gives. permutations: weight -> axes.
    """

    frame: onnx.ModelProto
    steps: tuple[Step, ...]
    rearranged: tuple[Rearranged, ...]
    reads: frozenset[str]
    constants: Mapping[str, onnx.TensorProto]
    blocks: Mapping[str, tuple[str, str]]
    permutations: Mapping[str, tuple[int, ...]]

    @classmethod
    def parse(cls, data: bytes) -> Template:
        """From what ``export_template`` gives. Raises ValueError if that is something else.

        A bundle may come from anybody: a template that names other files is refused.
        """
        try:
            model = onnx.load_model_from_string(data)
        except Exception as error:  # noqa: BLE001 - protobuf's own error class is not public
            raise ValueError(f"no ONNX model: {error}") from None
        _refuse_files(model)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        for key in (BLOCKS_KEY, PERMUTATIONS_KEY):
            if key not in metadata:
                raise ValueError(f"no template: its metadata has no {key!r}")
        constants = {t.name: t for t in model.graph.initializer if t.raw_data or 0 in t.dims}
        from_weights = {t.name for t in model.graph.initializer}
        steps: list[Step] = []
        rearranged: list[Rearranged] = []
        for node in model.graph.node:
            block = next((e.value for e in node.metadata_props if e.key == BLOCK_KEY), None)
            inputs = tuple(node.input)
            if node.op_type in _RULES and from_weights.issuperset(inputs):
                known = {n: numpy_helper.to_array(constants[n]) for n in inputs if n in constants}
                rule = _RULES[node.op_type](node)
                rearranged.append(Rearranged(node.output[0], block, inputs, known, rule))
                from_weights.add(node.output[0])
            else:
                proto = onnx.NodeProto()
                proto.CopyFrom(node)
                proto.ClearField("metadata_props")
                steps.append(Step(proto, block, inputs, node.op_type == "Conv"))
        for field in ("node", "initializer"):
            model.graph.ClearField(field)
        model.ClearField("metadata_props")
        blocks = json.loads(metadata[BLOCKS_KEY])
        return cls(
            frame=model,
            steps=tuple(steps),
            rearranged=tuple(rearranged),
            reads=frozenset(name for step in steps for name in step.inputs),
            constants=constants,
            blocks={name: (reads, gives) for name, (reads, gives) in blocks.items()},
            permutations=json.loads(metadata[PERMUTATIONS_KEY]),
        )

    def lay_out(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same arrays, those that graphs read transposed stored so that a cut copies rows."""
        laid_out = dict(weights)
        for name, axes in self.permutations.items():
            back = np.argsort(axes)
            laid_out[name] = np.ascontiguousarray(weights[name].transpose(axes)).transpose(back)
        return laid_out


def _refuse_files(message: Any) -> None:
    """Raises ValueError for whatever in a model makes a runtime read a file beside it."""
    if isinstance(message, onnx.TensorProto) and (
        message.external_data or message.data_location == onnx.TensorProto.EXTERNAL
    ):
        raise ValueError(
            f"not a whole model: tensor {message.name!r:.60} is in another file; store it inside"
        )
    if isinstance(message, onnx.NodeProto) and message.op_type == "EPContext":
        raise ValueError(
            "not a whole model: EPContext stands for a compiled engine; export a graph"
        )
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if hasattr(value, "ListFields") else value:
                _refuse_files(one)


def _transpose(node: onnx.NodeProto) -> Callable[..., np.ndarray]:
    return partial(np.transpose, axes=tuple(_attributes(node)["perm"]))


def _gather(node: onnx.NodeProto) -> Callable[..., np.ndarray]:
    return partial(np.take, axis=_attributes(node).get("axis", 0))


def _add(node: onnx.NodeProto) -> Callable[..., np.ndarray]:
    return np.add


_RULES: dict[str, Callable[[onnx.NodeProto], Callable[..., np.ndarray]]] = {
    "Transpose": _transpose,
    "Gather": _gather,
    "Add": _add,
}
"""Operators that a cut computes in numpy where they read weights alone: none that mixes elements
along an axis, so that what comes out, like a weight, has parts for subnets."""


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
