"""OipWire: requests and answers of the Open Inference Protocol as bytes.

JSON, and behind it the tensors that were sent or are wanted as binary. ``InferRequest`` is what was
asked, whatever form it had.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from starlette.responses import Response

from models.bundle.folder import Bundle
from shiftnas_serve.answer import Classified
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.problem import AsciiJson, Problem

MAX_IMAGES = 64
"""In one request: they share its deadline, and each waits its turn among all others."""
LENGTH_HEADER = "Inference-Header-Content-Length"
# There are three outputs, each in some forms.
_MAX_OUTPUTS = 16

Json = dict[str, object]


@dataclass(frozen=True)
class WantedOutput:
    """An output tensor as it was asked for. classes: of the classification extension, or 0."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class InferRequest:
    """A request that was understood: encoded images, budgets as header texts, outputs."""

    id: str | None
    images: Sequence[bytes]
    budgets: Mapping[str, str]
    outputs: Sequence[WantedOutput]


def parse_request(body: bytes, header_length: str | None, outputs: Sequence[str]) -> InferRequest:
    """Read the JSON part and the binary tensors behind it. Raises Problem 400 in one line.

    ``header_length``: bytes of the JSON part, where binary tensors follow it. ``outputs``: the
    names that the model has.
    """
    split = len(body) if header_length is None else _length(header_length, len(body))
    try:
        document = json.loads(body[:split])
        return _understood(document, body[split:], outputs)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON; see /v2/models/NAME for what it takes") from None


def _length(text: str, most: int) -> int:
    # (the number of digits first: Python refuses to read thousands of them)
    digits = len(str(most))
    if not (text.isascii() and text.isdecimal() and len(text) <= digits and int(text) <= most):
        raise Problem(400, f"{LENGTH_HEADER}: {text!r:.40} is no length within the body")
    return int(text)


def _understood(document: object, binary: bytes, outputs: Sequence[str]) -> InferRequest:
    if not isinstance(document, dict):
        raise Problem(400, "the body must be a JSON object with inputs")
    inputs = _objects(document, "inputs")
    if len(inputs) != 1 or inputs[0].get("name") != "image":
        names = [str(one.get("name"))[:40] for one in inputs[:3]]
        raise Problem(400, f"inputs must be the one tensor 'image', not {len(inputs)}: {names}")
    identity = document.get("id")
    if not isinstance(identity, str | None):
        raise Problem(400, "id must be a text")
    images = _images(inputs[0], binary)
    parameters = _parameters(document)
    return InferRequest(
        None if identity is None else identity[:128],
        images,
        _budgets(parameters),
        _outputs(document, outputs, bool(parameters.get("binary_data_output", False))),
    )


def _objects(document: Mapping[str, object], name: str) -> list[Json]:
    value = document.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Problem(400, f"{name} must be a list of objects")
    return value


def _parameters(one: Mapping[str, object]) -> Json:
    value = one.get("parameters", {})
    if not isinstance(value, dict):
        raise Problem(400, "parameters must be an object")
    return value


def _budgets(parameters: Mapping[str, object]) -> dict[str, str]:
    """Header -> text, for every kind of budget that the parameters name."""
    found = {}
    for kind in BUDGET_KINDS:
        value = parameters.get(kind.parameter)
        if value is not None:
            if not isinstance(value, str | int | float):
                raise Problem(400, f"{kind.parameter} must be a number or a text")
            found[kind.header.lower()] = str(value)
    return found


def _images(tensor: Json, binary: bytes) -> list[bytes]:
    if tensor.get("datatype") != "BYTES":
        given = str(tensor.get("datatype"))[:20]
        raise Problem(400, f"image has datatype BYTES (encoded images), not {given}")
    size = _parameters(tensor).get("binary_data_size")
    if size is not None:
        if size != len(binary):
            raise Problem(400, f"binary_data_size is {size!r:.20}, the body holds {len(binary)}")
        images = _binary_elements(binary)
    else:
        data = tensor.get("data")
        if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
            raise Problem(400, "image needs data: a list of base64 texts")
        try:
            images = [base64.b64decode(one, validate=True) for one in data]
        except (binascii.Error, ValueError):
            raise Problem(400, "image holds a text that is not valid base64") from None
    if not 1 <= len(images) <= MAX_IMAGES:
        raise Problem(400, f"image holds {len(images)} images; 1 to {MAX_IMAGES} are allowed")
    if tensor.get("shape") not in ([len(images)], [len(images), 1]):
        given = str(tensor.get("shape"))[:40]
        raise Problem(400, f"image has shape {given} and holds {len(images)} images")
    return images


def _binary_elements(binary: bytes) -> list[bytes]:
    """BYTES elements: each its length as a little-endian uint32, then its bytes."""
    elements: list[bytes] = []
    at = 0
    while at < len(binary):
        if at + 4 > len(binary):
            raise Problem(400, "image ends within the length of an element")
        (size,) = struct.unpack_from("<I", binary, at)
        at += 4 + size
        if at > len(binary):
            raise Problem(400, f"an element of image says {size} bytes, and the body ends before")
        elements.append(binary[at - size : at])
    return elements


def _outputs(document: Json, names: Sequence[str], all_binary: bool) -> list[WantedOutput]:
    wanted = _objects(document, "outputs")
    if len(wanted) > _MAX_OUTPUTS:
        raise Problem(400, f"{len(wanted)} outputs; at most {_MAX_OUTPUTS} are answered")
    if not wanted:
        return [WantedOutput(name, all_binary, 0) for name in names]
    found = []
    for one in wanted:
        name, parameters = one.get("name"), _parameters(one)
        if not isinstance(name, str) or name not in names:
            raise Problem(400, f"no output {name!r:.40}; there are: {', '.join(names)}")
        classes = parameters.get("classification", 0)
        if not isinstance(classes, int) or classes < 0 or (classes and name != "probabilities"):
            raise Problem(400, "classification is a number of classes, of probabilities")
        found.append(WantedOutput(name, bool(parameters.get("binary_data", all_binary)), classes))
    return found


def respond(bundle: Bundle, asked: InferRequest, every: Sequence[Classified]) -> Response:
    """The answer, with the binary tensors behind the JSON where they were asked for."""
    outputs: list[Json] = []
    parts: list[bytes] = []
    for wanted in asked.outputs:
        datatype, values = _values(bundle, wanted, every)
        output: Json = {"name": wanted.name, "datatype": datatype, "shape": list(values.shape)}
        if wanted.binary:
            data = _binary(values)
            output["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    document: Json = {
        "model_name": bundle.name,
        "model_version": bundle.version,
        "parameters": {"degraded": any(one.plan.degraded for one in every)},
        "outputs": outputs,
    }
    if asked.id is not None:
        document["id"] = asked.id
    if not parts:
        return AsciiJson(document)
    head = AsciiJson(document).body
    headers = {LENGTH_HEADER: str(len(head))}
    return Response(b"".join([head, *parts]), 200, headers, "application/octet-stream")


def _values(
    bundle: Bundle, wanted: WantedOutput, every: Sequence[Classified]
) -> tuple[str, np.ndarray]:
    if wanted.name == "subnet_id":
        return "BYTES", np.array([one.plan.subnet.id for one in every], object)
    if wanted.name == "subnet_flops":
        return "INT64", np.array([one.plan.subnet.flops for one in every], np.int64)
    probabilities = np.stack([one.probabilities for one in every]).astype(np.float32)
    if not wanted.classes:
        return "FP32", probabilities
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : wanted.classes]
    texts = [
        [f"{row[index]:f}:{index}:{bundle.labels[index]}" for index in indices]
        for row, indices in zip(probabilities, best, strict=True)
    ]
    return "BYTES", np.array(texts, object)


def _binary(values: np.ndarray) -> bytes:
    if values.dtype != object:
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    encoded = [str(one).encode() for one in values.ravel()]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)
