"""The OpenAPI document. Written by hand: bodies here are raw images, which no framework sees."""

from __future__ import annotations

from models.bundle.folder import Bundle
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.http.body import RAW_TYPES
from shiftnas_serve.problem import TITLES

Json = dict[str, object]


def openapi_document(bundle: Bundle) -> Json:
    """OpenAPI 3.1 of everything that this server answers."""
    classify = {
        "tags": ["classify"],
        "summary": "Classify one image within a budget",
        "description": (
            "The network that answers is chosen for the budget: `subnet.flops` never exceeds it. "
            f"FLOPs are multiply-adds; this model has subnets from {bundle.min_flops:,} to "
            f"{bundle.max_flops:,}."
        ),
        "parameters": [*_budget_headers(), _top_k(), _request_id()],
        "requestBody": {"required": True, "content": _bodies()},
        "security": _SECURITY,
        "responses": {
            "200": {
                "description": "The classes, and the subnet that found them",
                "headers": {
                    "Served-FLOPs": _header("Multiply-adds of the subnet", "integer"),
                    "Server-Timing": _header("decode, queue, infer and build in ms", "string"),
                    "Request-Id": _header("The request's id", "string"),
                },
                "content": {"application/json": {"schema": {"$ref": _ref("Classification")}}},
            },
            **_problems(400, 401, 408, 413, 415, 422, 429, 500, 503, 504),
        },
    }
    subnet_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    form = {
        "name": "format",
        "in": "query",
        "schema": {"type": "string", "enum": ["json", "onnx"], "default": "json"},
        "description": "onnx downloads the subnet as a self-contained ONNX model",
    }
    arch = {
        "name": "arch",
        "in": "query",
        "schema": {"type": "string"},
        "description": "`subnet.arch` of the answer that named the id, as JSON. Needed where this "
        "server does not know the id: where answers are not stored in the bundle, each process "
        "knows those that it gave itself",
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ShiftNAS Serve",
            "version": bundle.version,
            "description": f"{bundle.name}: one supernet, any FLOPs budget a request names.",
        },
        "paths": {
            "/classify": {
                "post": {**classify, "operationId": "classify"},
                "put": {**classify, "operationId": "classify_put"},
            },
            "/budgets": {
                "get": {
                    **_get("Range, groups, accuracy and latency per budget", "budgets", 401),
                    "security": _SECURITY,
                }
            },
            "/subnets/{id}": {
                "get": {
                    **_get("One subnet: its arch, or its ONNX model", "subnet", 400, 401, 404, 429),
                    "parameters": [subnet_id, form, arch],
                    "security": _SECURITY,
                }
            },
            "/livez": {"get": _get("The process is up", "livez", 503)},
            "/readyz": {"get": _get("Requests may come", "readyz", 503)},
            "/metrics": {"get": _get("Prometheus metrics", "metrics", media_type="text/plain")},
            **_oip(bundle),
            "/admin/reload": {"post": _reload()},
        },
        "components": {
            "schemas": {"Classification": _CLASSIFICATION, "Problem": _PROBLEM},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "admin_key": {"type": "http", "scheme": "bearer", "description": "of admin_keys"},
            },
        },
    }


def _oip(bundle: Bundle) -> Json:
    """The paths of the Open Inference Protocol, with the one model's name in them."""
    tensors: Json = {"type": "array", "items": {"type": "object"}}
    body = _object(inputs=tensors)
    example = {
        "parameters": {"flops_budget": bundle.max_flops},
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["/9j/4AAQ..."]}],
    }
    infer = {
        "tags": ["open inference protocol v2"],
        "summary": "Classify several images within one budget",
        "description": (
            "Input `image`: BYTES, encoded images, base64 in JSON. Parameters "
            f"{' and '.join(f'`{kind.parameter}`' for kind in BUDGET_KINDS)} are the "
            "budgets. Binary tensors and classification as in Triton's extensions."
        ),
        "operationId": "infer",
        "parameters": [*_budget_headers(), _request_id()],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": example}},
        },
        "security": _SECURITY,
        "responses": {
            "200": {
                "description": "The outputs that were asked for",
                "content": {"application/json": {"schema": _object(outputs=tensors)}},
            },
            **_problems(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
        },
    }
    model = f"/v2/models/{bundle.name}"
    return {
        "/v2": {"get": _get("The server and its extensions", "v2_server")},
        "/v2/health/live": {"get": _get("The process is up", "v2_live")},
        "/v2/health/ready": {"get": _get("Requests may come", "v2_ready")},
        model: {"get": _get("Input, outputs, version", "v2_model", 404)},
        f"{model}/config": {"get": _get("The same as Triton has it", "v2_model_config", 404)},
        f"{model}/ready": {"get": _get("The model answers", "v2_model_ready", 404)},
        f"{model}/infer": {"post": infer},
        f"{model}/versions/{bundle.version}": {
            "get": _get(
                "The same for this version alone, as are its ready and infer", "v2_version", 404
            )
        },
    }


def _reload() -> Json:
    model = _object(name=_TEXT, version=_TEXT)
    status: Json = {"type": "string", "enum": ["reloaded", "unchanged"]}
    answer = _object(
        status=status, model=model, previous=model, duration_ms=_NUMBER, request_id=_TEXT
    )
    body: Json = {"type": "object", "properties": {"bundle": _TEXT}, "additionalProperties": False}
    example = {"bundle": "/bundles/cifar10-cnn"}
    return {
        "tags": ["admin"],
        "summary": "Serve another bundle, or a newer version of the same",
        "description": (
            "While requests run: none fails, and each answer is of the one version that it names. "
            "Answered when the new version is served. `bundle` is a path on the server; without a "
            "body, the path that is served is read again. A bundle that is not good "
            "is refused with 422 and the reason, and the old one is served on; 409 while another "
            "reload is under way, and where the server has several processes; 403 where it has no "
            "admin keys."
        ),
        "operationId": "reload",
        "parameters": [_request_id()],
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": body, "example": example}},
        },
        "security": [{"admin_key": []}],
        "responses": {
            "200": {
                "description": "The new version is served",
                "content": {"application/json": {"schema": answer}},
            },
            **_problems(400, 401, 403, 409, 413, 422, 503, 504),
        },
    }


def _budget_headers() -> list[Json]:
    return [
        {
            "name": kind.header,
            "in": "header",
            "required": False,
            "description": kind.description,
            "schema": {"type": "string"},
            "example": kind.example,
        }
        for kind in BUDGET_KINDS
    ]


def _top_k() -> Json:
    schema = {"type": "integer", "minimum": 1, "default": 5}
    return {
        "name": "top_k",
        "in": "query",
        "schema": schema,
        "description": "Predictions to answer",
    }


def _request_id() -> Json:
    schema = {"type": "string", "maxLength": 64}
    return {"name": "Request-Id", "in": "header", "schema": schema, "description": "Echoed"}


def _bodies() -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string", "format": "binary"}},
    }
    encoded = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string", "contentEncoding": "base64"}},
    }
    return {
        **dict.fromkeys(RAW_TYPES, binary),
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": encoded, "example": {"image": "/9j/4AAQSkZJRg..."}},
    }


def _get(summary: str, operation: str, *errors: int, media_type: str = "application/json") -> Json:
    return {
        "tags": ["about"],
        "summary": summary,
        "operationId": operation,
        "responses": {
            "200": {"description": "OK", "content": {media_type: {"schema": {}}}},
            **_problems(*errors),
        },
    }


def _problems(*statuses: int) -> Json:
    content = {"application/problem+json": {"schema": {"$ref": _ref("Problem")}}}
    return {str(s): {"description": TITLES[s], "content": content} for s in statuses}


def _header(description: str, kind: str) -> Json:
    return {"description": description, "schema": {"type": kind}}


def _ref(name: str) -> str:
    return f"#/components/schemas/{name}"


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


# Without a key where the server has none, with one where it has.
_SECURITY: list[dict[str, list[str]]] = [{}, {"key": []}]
_TEXT: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_OPTIONAL_NUMBER: Json = {"type": ["number", "null"]}
_CLASSIFICATION = _object(
    predictions={
        "type": "array",
        "items": _object(label=_TEXT, index=_INTEGER, probability=_NUMBER),
    },
    subnet=_object(id=_TEXT, flops=_INTEGER, params=_INTEGER, arch={"type": "object"}),
    budget=_object(
        **{kind.name: _OPTIONAL_NUMBER for kind in BUDGET_KINDS}, degraded={"type": "boolean"}
    ),
    model=_object(name=_TEXT, version=_TEXT),
    request_id=_TEXT,
)
_PROBLEM = _object(type=_TEXT, title=_TEXT, status=_INTEGER, detail=_TEXT, request_id=_TEXT)
