"""Requests and answers of the Open Inference Protocol as bytes.

JSON, and behind it the tensors that were sent or are wanted as binary. ``InferRequest`` is what was
asked, whatever form it had. Only what is understood is ever built from the JSON, and no more of it
than can be right.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
from starlette.responses import Response

from models.bundle.folder import Bundle
from shiftnas_serve.engine.result import Result
from shiftnas_serve.http.answers import AsciiJson
from shiftnas_serve.http.body import decode_base64
from shiftnas_serve.http.options import budget_texts
from shiftnas_serve.problem import Problem

MAX_IMAGES = 64
"""In one request: they share its deadline, and each waits its turn among all others."""
LENGTH_HEADER = "Inference-Header-Content-Length"
# There are four outputs, each in some forms.
_MAX_OUTPUTS = 16
# Of what is not an image in a request.
_MAX_SMALL_BYTES = 65_536
_NOTHING = msgspec.Raw(b"{}")

Json = dict[str, object]
Parameters = dict[str, str | int | float | bool | None]
T = TypeVar("T")


class _Input(msgspec.Struct):
    name: str
    datatype: str = ""
    shape: msgspec.Raw = msgspec.Raw(b"[]")
    parameters: msgspec.Raw = _NOTHING
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: tuple[_Input]
    id: str | None = None
    parameters: msgspec.Raw = _NOTHING
    outputs: msgspec.Raw = msgspec.Raw(b"[]")


@dataclass(frozen=True)
class WantedOutput:
    """An output tensor as it was asked for. classes: of the classification extension, or 0."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class InferRequest:
    """A request that was understood: encoded images, budgets by the name of their kind, outputs."""

    id: str | None
    images: Sequence[bytes]
    budgets: Mapping[str, str]
    outputs: Sequence[WantedOutput]


def parse_request(body: bytes, header_length: bytes | None, outputs: Sequence[str]) -> InferRequest:
    """Read the JSON part and the binary tensors behind it. Raises Problem 400 in one line.

    ``header_length``: bytes of the JSON part, where binary tensors follow it. ``outputs``: the
    names that the model has.
    """
    split = len(body) if header_length is None else _length(header_length, len(body))
    try:
        document = msgspec.json.decode(memoryview(body)[:split], type=_Request)
        return _understood(document, body[split:], outputs)
    except msgspec.ValidationError as error:
        raise Problem(400, f"{str(error)[:200]}; inputs must be the one tensor 'image'") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Problem(400, "the body is not JSON; see /v2/models/NAME for what it takes") from None


def _length(text: bytes, most: int) -> int:
    # (the number of digits first: Python refuses to read thousands of them)
    digits = len(str(most))
    if not (text.isdigit() and len(text) <= digits and int(text) <= most):
        shown = text.decode("latin-1")
        raise Problem(400, f"{LENGTH_HEADER}: {shown!r:.40} is not a length within the body")
    return int(text)


def _small(raw: msgspec.Raw, kind: type[T], name: str) -> T:
    if len(bytes(raw)) > _MAX_SMALL_BYTES:
        raise Problem(400, f"{name} is longer than {_MAX_SMALL_BYTES:,} bytes")
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise Problem(400, f"{name}: {str(error)[:200]}") from None


def _understood(document: _Request, binary: bytes, outputs: Sequence[str]) -> InferRequest:
    (tensor,) = document.inputs
    if tensor.name != "image":
        raise Problem(400, f"inputs must be the one tensor 'image', not {tensor.name!r:.40}")
    parameters: Parameters = _small(document.parameters, Parameters, "parameters")
    return InferRequest(
        None if document.id is None else document.id[:128],
        _images(tensor, binary),
        budget_texts(parameters),
        _outputs(document.outputs, outputs, bool(parameters.get("binary_data_output", False))),
    )


def _images(tensor: _Input, binary: bytes) -> list[bytes]:
    if tensor.datatype != "BYTES":
        given = tensor.datatype[:20]
        raise Problem(400, f"image has datatype BYTES (encoded images), not {given}")
    parameters: Parameters = _small(tensor.parameters, Parameters, "parameters")
    size = parameters.get("binary_data_size")
    if size is not None:
        if size != len(binary):
            raise Problem(400, f"binary_data_size is {size!r:.20}, the body holds {len(binary)}")
        images = _binary_elements(binary)
    else:
        images = _base64_elements(bytes(tensor.data))
    if not 1 <= len(images) <= MAX_IMAGES:
        raise Problem(400, f"image holds {len(images)} images; 1 to {MAX_IMAGES} are allowed")
    shape = _small(tensor.shape, list[int], "shape")
    if shape not in ([len(images)], [len(images), 1]):
        raise Problem(400, f"image has shape {str(shape)[:40]} and holds {len(images)} images")
    return images


def _base64_elements(data: bytes) -> list[bytes]:
    quotes = data.count(b'"')
    if quotes > 2 * MAX_IMAGES:
        raise Problem(400, f"image holds more than {MAX_IMAGES} images")
    try:
        return [decode_base64(text) for text in msgspec.json.decode(data, type=list[str])]
    except msgspec.ValidationError:
        raise Problem(400, "image needs data: a list of base64 texts") from None


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


def _outputs(raw: msgspec.Raw, names: Sequence[str], all_binary: bool) -> list[WantedOutput]:
    wanted = _small(raw, list[_Output], "outputs")
    if len(wanted) > _MAX_OUTPUTS:
        raise Problem(400, f"{len(wanted)} outputs; at most {_MAX_OUTPUTS} are answered")
    if not wanted:
        return [WantedOutput(name, all_binary, 0) for name in names]
    found = []
    for one in wanted:
        if one.name not in names:
            raise Problem(400, f"no output {one.name!r:.40}; there are: {', '.join(names)}")
        classes = one.parameters.get("classification", 0)
        if not isinstance(classes, int) or classes < 0 or (classes and one.name != names[0]):
            raise Problem(400, f"classification is a number of classes, of {names[0]}")
        binary = bool(one.parameters.get("binary_data", all_binary))
        found.append(WantedOutput(one.name, binary, classes))
    return found


def respond(bundle: Bundle, asked: InferRequest, every: Sequence[Result]) -> Response:
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
        "parameters": {"degraded": any(one.degraded for one in every)},
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
    bundle: Bundle, wanted: WantedOutput, every: Sequence[Result]
) -> tuple[str, np.ndarray]:
    if wanted.name == "subnet_id":
        return "BYTES", np.array([one.subnet.id for one in every], object)
    if wanted.name == "spent_flops":
        return "INT64", np.array([one.spent_flops for one in every], np.int64)
    if wanted.name == "subnet_flops":
        return "INT64", np.array([one.subnet.flops for one in every], np.int64)
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
