"""Answers as ASGI wants them: results and problems as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from http.client import responses
from typing import Any

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shiftnas_serve import answer
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.engine.result import Result
from shiftnas_serve.planning.planner import Subnet
from shiftnas_serve.problem import Problem

_NOT_ASKED = {kind.name: None for kind in BUDGET_KINDS}


def json_answer(document: msgspec.Struct, *headers: tuple[bytes, bytes]) -> ASGIApp:
    """A 200 that is JSON."""
    body = msgspec.json.encode(document)
    length = (b"content-length", b"%d" % len(body))
    fields = [(b"content-type", b"application/json"), length, *headers]

    async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    return send_it


def classification(result: Result, request_id: str) -> ASGIApp:
    """A result as JSON, and what it cost in the headers."""
    timing, spent = result.timing, result.spent_flops
    document = answer.Classification(
        tuple(result.predictions),
        _budget(result),
        result.model,
        request_id,
        _encoded(result.subnet),
    )
    server_timing = (
        f"decode;dur={timing.decode_ms:.2f}, queue;dur={timing.queue_ms:.2f}, "
        f'infer;dur={timing.infer_ms:.3f}, build;dur={timing.build_ms:.2f};desc="{timing.source}"'
    )
    return json_answer(
        document,
        (b"served-flops", b"%d" % result.subnet.flops),
        (b"spent-flops", b"%d" % spent),
        (b"server-timing", server_timing.encode()),
    )


def _budget(result: Result) -> Any:
    """``answer.Budget``, with all kinds of budget that there are."""
    became = {"degraded": result.degraded, "spent_flops": result.spent_flops}
    return {**_NOT_ASKED, **result.asked, **became}


@lru_cache(4096)
def _encoded(subnet: Subnet) -> Any:
    return msgspec.Raw(msgspec.json.encode(subnet_document(subnet)))


def subnet_document(subnet: Subnet) -> answer.Subnet:
    """What answers say of a subnet."""
    return answer.Subnet(subnet.id, subnet.flops, subnet.params, dict(subnet.arch))


def own_path(scope: Scope) -> str:
    """Below where the application is mounted, if it is."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


class ProblemDocument(msgspec.Struct):
    """What RFC 9457 has in an answer, and the id of the request."""

    title: str
    status: int
    detail: str
    request_id: str
    type: str = "about:blank"


def problem_response(problem: Problem, scope: Scope) -> Response:
    """The answer to a request that failed.

    Under /v2 it also has the field ``error``, where clients of the Open Inference Protocol look.
    """
    title, identity = responses.get(problem.status, "Error"), scope["state"]["request_id"]
    document = ProblemDocument(title, problem.status, problem.detail, identity)
    body = {**msgspec.structs.asdict(document), **problem.extra}
    if own_path(scope).startswith("/v2"):
        body["error"] = problem.detail
    return AsciiJson(body, problem.status, problem.headers, "application/problem+json")


def unknown_problem() -> Problem:
    """What a client is told of an error that nobody foresaw; the log gets its traceback."""
    return Problem(500, "an error of the server's own; its log has the details")


class AsciiJson(JSONResponse):
    """JSON that can hold whatever a client sent: half of a surrogate pair has no UTF-8."""

    def render(self, content: Mapping[str, object]) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
