"""Bundles that are whole and not good."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from models.bundle.manifest import version_of


def spoilt(bundle: Path, folder: Path, spoil: Callable[[Path], None]) -> Path:
    """A copy with one thing changed, and hashes that say it was meant so."""
    copied = Path(shutil.copytree(bundle, folder))
    spoil(copied)
    manifest = copied / "bundle.json"
    document = json.loads(manifest.read_text())
    for name in document["files"]:
        data = (copied / name).read_bytes()
        described = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        document["files"][name] = described
    document["version"] = version_of(document)
    manifest.write_text(json.dumps(document))
    return copied


def weights(value: float) -> Callable[[Path], None]:
    """A value in the middle of the last layer's weights."""

    def spoil(folder: Path) -> None:
        file = folder / "supernet.safetensors"
        arrays = {name: np.array(array) for name, array in load_file(file).items()}
        arrays["classifier.weight"][0, :] = value
        save_file(arrays, file)

    return spoil


def unknown_operator(folder: Path) -> None:
    """A graph that no runtime can run."""
    template = folder / "template.onnx"
    model = onnx.load_model(template)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Nonsense"
    template.write_bytes(model.SerializeToString())


WHITE = (255, 255, 255)
"""The colour of images to which ``wedges`` and ``answers_no_number`` do what they say."""


def wedges(folder: Path) -> None:
    """A graph that goes round in a loop for ever where an image is white."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("in", "out")]
    goes = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("before", "after")]
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    steps = [
        helper.make_node("Identity", ["before"], ["after"]),
        helper.make_node("Neg", ["in"], ["out"]),
    ]
    body = helper.make_graph(steps, "body", [turn, goes[0], value[0]], [goes[1], value[1]])
    _where_white(
        folder,
        {"turns": np.int64(2**60), "no turn": np.int64(0), "goes on": np.True_},
        helper.make_node("Where", ["white", "turns", "no turn"], ["count"]),
        helper.make_node("Loop", ["count", "goes on", "made"], ["logits"], body=body),
    )


def answers_no_number(folder: Path) -> None:
    """A graph whose answer is not a number where an image is white."""
    no_number = {"no number": np.float32("nan")}
    _where_white(
        folder, no_number, helper.make_node("Where", ["white", "no number", "made"], ["logits"])
    )


def _where_white(folder: Path, constants: dict[str, np.generic], *nodes: onnx.NodeProto) -> None:
    """Append nodes that make ``logits`` of ``made`` and of ``white``, whether an image is."""
    file = folder / "template.onnx"
    model = onnx.load_model(file)
    graph = model.graph
    graph.node[-1].output[0] = "made"
    for name, value in ({"bright": np.float32(1.9)} | constants).items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.initializer.append(helper.make_tensor(name, kind, [], value.tobytes(), raw=True))
    graph.node.append(helper.make_node("ReduceMin", ["images"], ["darkest"], keepdims=0))
    graph.node.append(helper.make_node("Greater", ["darkest", "bright"], ["white"]))
    graph.node.extend(nodes)
    file.write_bytes(model.SerializeToString())
