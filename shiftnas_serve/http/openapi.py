"""The OpenAPI document. Bodies here are raw images, which no framework sees, so it is a table."""

from __future__ import annotations

from collections.abc import Sequence
from http.client import responses

import msgspec

from models.bundle.folder import Bundle
from shiftnas_serve.answer import Classification
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.http.admin import Reload, ReloadAnswer
from shiftnas_serve.http.answers import ProblemDocument
from shiftnas_serve.http.body import RAW_TYPES, ImageDocument
from shiftnas_serve.problem import STATUSES

Json = dict[str, object]

_TYPES = (Classification, ImageDocument, ProblemDocument, Reload, ReloadAnswer)
_REF = "#/components/schemas/{name}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(name="ProblemDocument")}}}
_STRING: Json = {"type": "string"}
_BINARY: Json = {**_STRING, "format": "binary"}
_FORM: Json = {
    "type": "object",
    "properties": {"image": _BINARY},
    "required": ["image"],
    "additionalProperties": False,
}
_TENSORS: Json = {"type": "object"}
_KEY: Json = {"type": "http", "scheme": "bearer"}
# Of requests with images.
_ERRORS = [one for one in STATUSES if one not in (403, 404, 405, 409)]


def openapi_document(bundle: Bundle) -> Json:
    """OpenAPI 3.1 of everything that this server answers."""
    refs, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)
    known = schemas["Budget"]["properties"]
    known |= {kind.name: known["flops"] for kind in BUDGET_KINDS if kind.name not in known}
    classification, image, _, reload, reloaded = refs
    model = f"/v2/models/{bundle.name}"
    told: list[tuple[str, str, list[int]]] = [
        ("/budgets", "Range, groups, accuracy and latency per budget", [401, 503]),
        ("/livez", "The process is up", [503]),
        ("/readyz", "Requests may come", [503]),
        ("/metrics", "Prometheus metrics, as text", []),
        ("/v2", "The server and its extensions", []),
        ("/v2/health/live", "The process is up", []),
        ("/v2/health/ready", "Requests may come", []),
        (model, "Input, outputs, version", [404, 503]),
        (f"{model}/config", "The same as Triton has it", [404, 503]),
        (f"{model}/stats", "How many images, and the time of their stages", [404, 503]),
        (f"{model}/ready", "The model answers", [404, 503]),
        (f"{model}/versions/{bundle.version}", "The same of a version, and below it", [404, 503]),
    ]
    identity = _parameter("header", "Request-Id", "Echoed; at most 64 characters")
    budgets = [
        {**_parameter("header", kind.header, kind.description), "example": kind.example}
        for kind in BUDGET_KINDS
    ]
    classify = _operation(
        "Classify one image within a budget",
        _ERRORS,
        "The network that answers is chosen for the budget: `subnet.flops` never exceeds it. FLOPs "
        f"are multiply-adds, here from {bundle.min_flops:,} to {bundle.max_flops:,}. An answer's "
        "header Server-Timing has the milliseconds of its stages.",
        [*budgets, _parameter("query", "top_k", "Predictions to answer, or 5"), identity],
        {
            **dict.fromkeys(RAW_TYPES, _BINARY),
            "multipart/form-data": _FORM,
            "application/json": image,
        },
        classification,
    )
    infer = _operation(
        "Classify several images within one budget",
        [404, *_ERRORS],
        "Input `image`: BYTES, encoded images, base64 in JSON. Budgets are headers or parameters: "
        f"{', '.join(kind.parameter for kind in BUDGET_KINDS)}. Binary tensors and classification "
        "as in Triton's extensions.",
        [*budgets, identity],
        {"application/json": _TENSORS},
        _TENSORS,
    )
    subnet = _operation(
        "One subnet: its arch, or its ONNX model",
        [400, 401, 404, 429, 503],
        "Where answers are not stored in the bundle, each process knows the ids that it gave "
        "itself: add `subnet.arch` of the answer that named the id, as JSON.",
        [
            {**_parameter("path", "id", "Of an answer, or of `/budgets`"), "required": True},
            _parameter("query", "format", "`json`, or `onnx` to download it"),
            _parameter("query", "arch", "Of the subnet"),
        ],
    )
    reloading = _operation(
        "Serve another bundle, or a newer version of the same",
        [one for one in STATUSES if one not in (404, 405, 431)],
        "Answered when the new version is served; no request fails meanwhile. `bundle`: a path on "
        "the server; without a body, the path that is served is read again. 422: the bundle is not "
        "good, and the old one is served on; 409: another reload is under way, or the server has "
        "several processes; 403: it has no admin keys.",
        [identity],
        {"application/json": reload},
        reloaded,
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ShiftNAS Serve",
            "version": bundle.version,
            "description": f"{bundle.name}: one supernet, any FLOPs budget a request names.",
        },
        "servers": [{"url": "."}],  # beside this document, under any prefix
        "paths": {
            "/classify": {"post": classify, "put": classify},
            "/subnets/{id}": {"get": subnet},
            f"{model}/infer": {"post": infer},
            "/admin/reload": {"post": reloading},
            **{path: {"get": _operation(text, errors)} for path, text, errors in told},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": _KEY, "admin_key": {**_KEY, "description": "of admin_keys"}},
        },
    }


def _operation(
    summary: str,
    errors: Sequence[int],
    description: str = "",
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    answer: object = None,
) -> Json:
    told = {str(one): {"description": responses[one], "content": _PROBLEM} for one in errors}
    given = {"content": {"application/json": {"schema": answer}}} if answer else {}
    operation: Json = {
        "summary": summary,
        "description": description,
        "parameters": parameters,
        "responses": {"200": {"description": "OK", **given}, **told},
    }
    if body:
        operation["requestBody"] = {"content": {one: {"schema": body[one]} for one in body}}
    if 401 in errors:
        # Without a key where the server has none, with one where it has.
        operation["security"] = [{"admin_key": ()}] if 403 in errors else [{}, {"key": ()}]
    return operation


def _parameter(place: str, name: str, description: str) -> Json:
    return {"name": name, "in": place, "description": description, "schema": _STRING}
