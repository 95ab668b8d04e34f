"""Requests and answers of the Open Inference Protocol as bytes.

JSON, and behind it the tensors that were sent or are wanted as binary. ``InferRequest`` is what was
asked, whatever form it had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from starlette.responses import Response

from models.bundle.folder import Bundle
from shiftnas_serve.engine.result import Result
from shiftnas_serve.http.answers import AsciiJson
from shiftnas_serve.http.body import decode_base64
from shiftnas_serve.http.options import PLACES_V2, budget_texts, refuse_others, refuse_repeated
from shiftnas_serve.problem import Problem

MAX_IMAGES = 64
"""In one request: they share its deadline, and each waits its turn among all others."""
LENGTH_HEADER = "Inference-Header-Content-Length"
CLASSES = "probabilities"
OUTPUTS: Mapping[str, tuple[str, Callable[[Result], object]]] = {
    CLASSES: ("FP32", lambda one: one.probabilities),
    "subnet_id": ("BYTES", lambda one: one.subnet.id),
    "subnet_flops": ("INT64", lambda one: one.subnet.flops),
    "spent_flops": ("INT64", lambda one: one.spent_flops),
}
"""What each output has of an image: the tensor's datatype, and its value."""
_TYPES = {"FP32": "<f4", "INT64": "<i8", "BYTES": "O"}
_MAX_ID = 128
# In JSON, of a probability or the text of a class.
_VALUE_BYTES = 25
# No more of them are ever built from the JSON. Base64 has no commas; a data: URL has one.
_MAX_VALUES = 1_000
# The second is of clients that say for their own sake what they have encoded.
_INPUT_PARAMETERS = ("binary_data_size", "content_type")
_OUTPUT_PARAMETERS = ("classification", "binary_data")

Json = dict[str, object]
Parameters = dict[str, str | int | float | bool | None]


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    datatype: str = ""
    shape: list[int] = []
    parameters: Parameters = {}
    data: list[str] = []


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: Parameters = {}


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: tuple[_Input]
    id: str | None = None
    model_name: str | None = None
    parameters: Parameters = {}
    outputs: list[_Output] = []


@dataclass(frozen=True)
class WantedOutput:
    """An output tensor as it was asked for. classes: of the classification extension, or 0."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class InferRequest:
    """A request that was understood: encoded images, budgets by the name of their kind, outputs.

    model_name: KServe's client says it here too.
    """

    id: str | None
    model_name: str | None
    images: Sequence[bytes]
    budgets: Mapping[str, str]
    outputs: Sequence[WantedOutput]


def parse_request(body: bytes, header_length: bytes | None) -> InferRequest:
    """Read the JSON part and the binary tensors behind it. Raises Problem 400 in one line.

    ``header_length``: bytes of the JSON part, where binary tensors follow it.
    """
    split = len(body) if header_length is None else _length(header_length, len(body))
    wanted = "inputs must be the one tensor 'image'"
    if body.count(b",", 0, split) > _MAX_VALUES:
        raise Problem(400, f"the JSON has more than {_MAX_VALUES:,} values; {wanted}")
    try:
        asked = msgspec.json.decode(memoryview(body)[:split], type=_Request)
        refuse_repeated(body[:split])
    except msgspec.ValidationError as error:
        right = PLACES_V2 if "unknown field" in str(error) else wanted
        raise Problem(400, f"{str(error)[:200]}; {right}") from None
    except (ValueError, RecursionError):  # msgspec's own and of texts that are not UTF-8, too
        raise Problem(400, "the body is not JSON; see /v2/models/NAME for what it takes") from None
    (tensor,) = asked.inputs
    if tensor.name != "image":
        raise Problem(400, f"{wanted}, not {tensor.name!r:.40}")
    if len(asked.id or "") > _MAX_ID:
        raise Problem(400, f"id has {len(asked.id or ''):,} characters; {_MAX_ID} are allowed")
    return InferRequest(
        asked.id,
        asked.model_name,
        _images(tensor, body[split:]),
        budget_texts(asked.parameters),
        _outputs(asked.outputs, _flag(asked.parameters, "binary_data_output", default=False)),
    )


def _flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Problem(400, f"{name} is true or false, not {value!r:.40}")
    return value


def _length(text: bytes, most: int) -> int:
    # (the number of digits first: Python refuses to read thousands of them)
    if not (text.isdigit() and len(text) <= len(str(most)) and int(text) <= most):
        shown = text.decode("latin-1")
        raise Problem(400, f"{LENGTH_HEADER}: {shown!r:.40} is not a length within the body")
    return int(text)


def _images(tensor: _Input, binary: bytes) -> list[bytes]:
    if tensor.datatype != "BYTES":
        given = tensor.datatype[:20]
        raise Problem(400, f"image has datatype BYTES (encoded images), not {given}")
    refuse_others(tensor.parameters, _INPUT_PARAMETERS, "parameters of image", PLACES_V2)
    size = tensor.parameters.get("binary_data_size")
    sent = size is not None
    if isinstance(size, bool) or (size if sent else 0) != len(binary):
        raise Problem(400, f"binary_data_size is {size!r:.20}, the body holds {len(binary)}")
    if sent and tensor.data:
        raise Problem(400, "image has both data and binary_data_size; send its images once")
    images = _elements(binary) if sent else [decode_base64(text) for text in tensor.data]
    if not 1 <= len(images) <= MAX_IMAGES:
        raise Problem(400, f"image holds {len(images)} images; 1 to {MAX_IMAGES} are allowed")
    if tensor.shape not in ([len(images)], [len(images), 1]):
        shape = str(tensor.shape)[:40]
        raise Problem(400, f"image has shape {shape} and holds {len(images)} images")
    return images


def _elements(binary: bytes) -> list[bytes]:
    """BYTES elements: each its length as a little-endian uint32, then its bytes."""
    elements: list[bytes] = []
    at = 0
    while at < len(binary):
        size = int.from_bytes(binary[at : at + 4], "little")
        at += 4 + size
        if at > len(binary):
            raise Problem(400, f"an element of image says {size} bytes, and the body ends before")
        elements.append(binary[at - size : at])
        if len(elements) > MAX_IMAGES:  # a body can hold millions
            raise Problem(400, f"image holds more than the {MAX_IMAGES} images that are allowed")
    return elements


def _outputs(wanted: Sequence[_Output], all_binary: bool) -> list[WantedOutput]:
    found: list[WantedOutput] = []
    forms: set[tuple[str, bool, bool]] = set()
    for one in wanted or map(_Output, OUTPUTS):
        if one.name not in OUTPUTS:
            raise Problem(400, f"no output {one.name!r:.40}; there are: {', '.join(OUTPUTS)}")
        refuse_others(one.parameters, _OUTPUT_PARAMETERS, f"parameters of {one.name}", PLACES_V2)
        classes = one.parameters.get("classification") or 0
        is_number = isinstance(classes, int) and not isinstance(classes, bool) and classes >= 0
        if not is_number or (classes and one.name != CLASSES):
            raise Problem(400, f"classification is a number of classes, of {CLASSES}")
        binary = _flag(one.parameters, "binary_data", default=all_binary)
        form = (one.name, binary, classes > 0)
        if form in forms:
            twice = f"the output {one.name} stands twice in the same form"
            raise Problem(400, f"{twice}; ask for it once")
        forms.add(form)
        found.append(WantedOutput(one.name, binary, classes))
    return found


def answer_bytes(asked: InferRequest, labels: int) -> int:
    """About how long the answer will be, where there are so many ``labels``."""
    values = (min(one.classes or labels, labels) for one in asked.outputs if one.name == CLASSES)
    return _VALUE_BYTES * len(asked.images) * sum(values)


def respond(bundle: Bundle, asked: InferRequest, every: Sequence[Result]) -> Response:
    """The answer, with the binary tensors behind the JSON where they were asked for."""
    outputs: list[Json] = []
    parts: list[bytes] = []
    for wanted in asked.outputs:
        datatype, value_of = OUTPUTS[wanted.name]
        values = np.array([value_of(one) for one in every], _TYPES[datatype])
        if wanted.classes:
            datatype, values = "BYTES", _best(values, wanted.classes, bundle.labels)
        output: Json = {"name": wanted.name, "datatype": datatype, "shape": list(values.shape)}
        if wanted.binary:
            parts.append(_binary(values))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
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
    answer = AsciiJson(document)
    if not parts:
        return answer
    headers = {LENGTH_HEADER: str(len(answer.body))}
    return Response(b"".join([answer.body, *parts]), 200, headers, "application/octet-stream")


def _best(probabilities: np.ndarray, classes: int, labels: Sequence[str]) -> np.ndarray:
    """As Triton's extension writes them: probability, index, label."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :classes]
    texts = [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in indices]
        for row, indices in zip(probabilities, best, strict=True)
    ]
    return np.array(texts, object)


def _binary(values: np.ndarray) -> bytes:
    if values.dtype != object:
        return values.tobytes()
    encoded = [str(one).encode() for one in values.ravel()]
    return b"".join(len(one).to_bytes(4, "little") + one for one in encoded)
