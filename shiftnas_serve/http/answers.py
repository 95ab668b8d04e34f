"""Answers as ASGI wants them: results and problems as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shiftnas_serve.answer import ModelName, Prediction
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.engine.result import Result
from shiftnas_serve.planning.planner import Subnet
from shiftnas_serve.problem import TITLES, Problem

_NO_BUDGETS = {kind.name: None for kind in BUDGET_KINDS}
_encode = msgspec.json.Encoder().encode


class _Body(msgspec.Struct):
    predictions: list[Prediction]
    budget: msgspec.Raw
    model: ModelName
    request_id: str
    subnet: msgspec.Raw


class JsonAnswer:
    """A 200 that is JSON."""

    __slots__ = ("_headers", "body")

    def __init__(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.body = body
        self._headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self.body})


def classification(result: Result, request_id: str) -> JsonAnswer:
    """A result as JSON, and what it cost in the headers."""
    timing = result.timing
    body = _Body(
        list(result.predictions),
        _budget_json(tuple(result.asked.items()), result.degraded, result.spent_flops),
        result.model,
        request_id,
        _subnet_json(result.subnet),
    )
    server_timing = (
        f"decode;dur={timing.decode_ms:.2f}, queue;dur={timing.queue_ms:.2f}, "
        f'infer;dur={timing.infer_ms:.3f}, build;dur={timing.build_ms:.2f};desc="{timing.source}"'
    )
    return JsonAnswer(
        _encode(body),
        [
            (b"served-flops", b"%d" % result.subnet.flops),
            (b"spent-flops", b"%d" % result.spent_flops),
            (b"server-timing", server_timing.encode()),
        ],
    )


@lru_cache(4096)
def _subnet_json(subnet: Subnet) -> msgspec.Raw:
    return msgspec.Raw(_encode(subnet_document(subnet)))


@lru_cache(4096)
def _budget_json(
    asked: tuple[tuple[str, float], ...], degraded: bool, spent_flops: int
) -> msgspec.Raw:
    known = {**_NO_BUDGETS, **dict(asked), "degraded": degraded, "spent_flops": spent_flops}
    return msgspec.Raw(_encode(known))


def subnet_document(subnet: Subnet) -> dict[str, object]:
    """What answers say of a subnet."""
    return {
        "id": subnet.id,
        "flops": subnet.flops,
        "params": subnet.params,
        "arch": dict(subnet.arch),
    }


def own_path(scope: Scope) -> str:
    """Below where the application is mounted, if it is."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def problem_response(problem: Problem, scope: Scope) -> Response:
    """The answer to a request that failed.

    Under /v2 it also has the field ``error``, where clients of the Open Inference Protocol look.
    """
    body = problem_document(problem, scope["state"]["request_id"])
    if own_path(scope).startswith("/v2"):
        body["error"] = problem.detail
    return AsciiJson(
        body, problem.status, headers=problem.headers, media_type="application/problem+json"
    )


class ProblemDocument(msgspec.Struct):
    """What RFC 9457 has in an answer, and the id of the request."""

    title: str
    status: int
    detail: str
    request_id: str
    type: str = "about:blank"


def problem_document(problem: Problem, request_id: str) -> dict[str, object]:
    """As JSON has it, with the fields that this problem has beside them."""
    title = TITLES.get(problem.status, "Error")
    document = ProblemDocument(title, problem.status, problem.detail, request_id)
    return {**msgspec.structs.asdict(document), **problem.extra}


def unknown_problem() -> Problem:
    """What a client is told of an error that nobody foresaw; the log gets its traceback."""
    return Problem(500, "an error of the server's own; its log has the details")


class AsciiJson(JSONResponse):
    """JSON that can hold whatever a client sent: half of a surrogate pair has no UTF-8."""

    def render(self, content: Mapping[str, object]) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
