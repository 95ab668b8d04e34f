"""The OpenAPI document. Bodies here are raw images, which no framework sees, so it is a table."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from models.bundle.folder import Bundle
from shiftnas_serve.answer import Classification
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.http.admin import Reload, ReloadAnswer
from shiftnas_serve.http.answers import ProblemDocument
from shiftnas_serve.http.body import RAW_TYPES
from shiftnas_serve.problem import TITLES

Json = dict[str, object]

_REF = "#/components/schemas/{name}"
_TEXT: Json = {"type": "string"}
_BINARY: Json = {"type": "string", "format": "binary"}
_BASE64: Json = {"type": "string", "contentEncoding": "base64"}
_TENSORS: Json = {"type": "array", "items": {"type": "object"}}


def openapi_document(bundle: Bundle) -> Json:
    """OpenAPI 3.1 of everything that this server answers."""
    _, schemas = msgspec.json.schema_components(
        [Classification, ProblemDocument, Reload, ReloadAnswer], ref_template=_REF
    )
    model = f"/v2/models/{bundle.name}"
    told: list[tuple[str, str, list[int]]] = [
        ("/budgets", "Range, groups, accuracy and latency per budget", [401]),
        ("/livez", "The process is up", [503]),
        ("/readyz", "Requests may come", [503]),
        ("/metrics", "Prometheus metrics, as text", []),
        ("/v2", "The server and its extensions", []),
        ("/v2/health/live", "The process is up", []),
        ("/v2/health/ready", "Requests may come", []),
        (model, "Input, outputs, version", [404]),
        (f"{model}/config", "The same as Triton has it", [404]),
        (f"{model}/stats", "How many images, and the time of their stages", [404]),
        (f"{model}/ready", "The model answers", [404]),
        (
            f"{model}/versions/{bundle.version}",
            "The same for this version alone, as are its config, stats, ready and infer",
            [404],
        ),
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ShiftNAS Serve",
            "version": bundle.version,
            "description": f"{bundle.name}: one supernet, any FLOPs budget a request names.",
        },
        "paths": {
            "/classify": {method: _classify(bundle) for method in ("post", "put")},
            "/subnets/{id}": {"get": _subnet()},
            f"{model}/infer": {"post": _infer(bundle)},
            "/admin/reload": {"post": _reload()},
            **{path: {"get": _operation(text, errors=errors)} for path, text, errors in told},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "admin_key": {"type": "http", "scheme": "bearer", "description": "of admin_keys"},
            },
        },
    }


def _classify(bundle: Bundle) -> Json:
    encoded = {"schema": _object(image=_BASE64), "example": {"image": "/9j/4AAQSkZJRg..."}}
    return _operation(
        "Classify one image within a budget",
        "The network that answers is chosen for the budget: `subnet.flops` never exceeds it. FLOPs "
        f"are multiply-adds; this model has subnets from {bundle.min_flops:,} to "
        f"{bundle.max_flops:,}. The header Served-FLOPs of an answer has those of its subnet, "
        "Server-Timing the milliseconds of its stages.",
        parameters=[
            *_budgets(),
            _parameter("query", "top_k", "Predictions to answer", type="integer", default=5),
            _REQUEST_ID,
        ],
        body={
            **{one: {"schema": _BINARY} for one in RAW_TYPES},
            "multipart/form-data": {"schema": _object(image=_BINARY)},
            "application/json": encoded,
        },
        answer=_ref(Classification),
        errors=[400, 401, 408, 413, 415, 422, 429, 500, 503, 504],
    )


def _infer(bundle: Bundle) -> Json:
    named = " and ".join(f"`{kind.parameter}`" for kind in BUDGET_KINDS)
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["/9j/4AAQ..."]}
    example = {"parameters": {"flops_budget": bundle.max_flops}, "inputs": [image]}
    return _operation(
        "Classify several images within one budget",
        f"Input `image`: BYTES, encoded images, base64 in JSON. Parameters {named} are budgets. "
        "Binary tensors and classification as in Triton's extensions.",
        parameters=[*_budgets(), _REQUEST_ID],
        body={"application/json": {"schema": _object(inputs=_TENSORS), "example": example}},
        answer=_object(outputs=_TENSORS),
        errors=[400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504],
    )


def _subnet() -> Json:
    return _operation(
        "One subnet: its arch, or its ONNX model",
        parameters=[
            {**_parameter("path", "id", "Of an answer, or of `/budgets`"), "required": True},
            _parameter("query", "format", "`json`, or `onnx` to download it", default="json"),
            _parameter(
                "query",
                "arch",
                "`subnet.arch` of the answer that named the id, as JSON. Needed where this server "
                "does not know the id: where answers are not stored in the bundle, each process "
                "knows those that it gave itself",
            ),
        ],
        errors=[400, 401, 404, 429],
    )


def _reload() -> Json:
    return _operation(
        "Serve another bundle, or a newer version of the same",
        "While requests run: none fails, and each answer is of the one version that it names. "
        "Answered when the new version is served. `bundle` is a path on the server; without a "
        "body, the path that is served is read again. A bundle that is not good is refused with "
        "422 and the reason, and the old one is served on; 409 while another reload is under way, "
        "and where the server has several processes; 403 where it has no admin keys.",
        parameters=[_REQUEST_ID],
        body={
            "application/json": {
                "schema": _ref(Reload),
                "example": {"bundle": "/bundles/cifar10-cnn"},
            }
        },
        answer=_ref(ReloadAnswer),
        errors=[400, 401, 403, 409, 413, 422, 503, 504],
    )


def _operation(
    summary: str,
    description: str = "",
    *,
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    answer: Json | None = None,
    errors: Sequence[int] = (),
) -> Json:
    given: Json = {} if answer is None else {"content": {"application/json": {"schema": answer}}}
    problem = {"application/problem+json": {"schema": _ref(ProblemDocument)}}
    operation: Json = {
        "summary": summary,
        "description": description,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": "OK", **given},
            **{str(one): {"description": TITLES[one], "content": problem} for one in errors},
        },
    }
    if body is not None:
        operation["requestBody"] = {"content": body}
    if 401 in errors:
        # Without a key where the server has none, with one where it has.
        nothing = list[str]()
        keys = [{"admin_key": nothing}] if 403 in errors else [{}, {"key": nothing}]
        operation["security"] = keys
    return operation


def _parameter(place: str, name: str, description: str, **schema: object) -> Json:
    given = {"type": "string", **schema}
    return {"name": name, "in": place, "description": description, "schema": given}


_REQUEST_ID = _parameter("header", "Request-Id", "Echoed", maxLength=64)


def _budgets() -> list[Json]:
    return [
        {**_parameter("header", kind.header, kind.description), "example": kind.example}
        for kind in BUDGET_KINDS
    ]


def _ref(struct: type[msgspec.Struct]) -> Json:
    return {"$ref": _REF.format(name=struct.__name__)}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}
