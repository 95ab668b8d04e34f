"""Problems: every error of the HTTP interface as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

CLIENT_GONE = 499
"""Logged and counted where the client went away before its answer; nobody is sent it."""

TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported media type",
    422: "Cannot be processed",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    503: "Not available",
    504: "Too late",
}


class Problem(Exception):
    """An error with a status; ``extra`` fields and headers go into the answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.extra, self.headers = dict(extra or {}), dict(headers or {})


def problem_response(problem: Problem, request: Request) -> Response:
    """The answer to a request that failed.

    Under /v2 it also has the field ``error``, where clients of the Open Inference Protocol look.
    """
    body = problem_document(problem, request.state.request_id)
    if request.url.path.startswith("/v2"):
        body["error"] = problem.detail
    return AsciiJson(
        body, problem.status, headers=problem.headers, media_type="application/problem+json"
    )


def problem_document(problem: Problem, request_id: str) -> dict[str, object]:
    """What RFC 9457 has in an answer, and the id of the request."""
    return {
        "type": "about:blank",
        "title": TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
        **problem.extra,
    }


class AsciiJson(JSONResponse):
    """JSON that can hold whatever a client sent: half of a surrogate pair has no UTF-8."""

    def render(self, content: object) -> bytes:
        """As escapes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def answering_problems(endpoint: Callable[[Request], Awaitable[ASGIApp]]) -> ASGIApp:
    """An endpoint as an ASGI app of its own: what it answers is sent, a Problem is answered."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await endpoint(request)
        except Problem as problem:
            answer = problem_response(problem, request)
        except Exception:
            await problem_response(unknown_problem(), request)(scope, receive, send)
            raise
        await answer(scope, receive, send)

    return app


def unknown_problem() -> Problem:
    """What a client is told of an error that nobody foresaw; the log gets its traceback."""
    return Problem(500, "an error of the server's own; its log has the details")


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of an app a problem, those of the framework included."""

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return problem_response(error, request)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"there is no {request.url.path} here; /docs lists what there is"
        problem = Problem(error.status_code, detail, headers=headers)
        return problem_response(problem, request)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem_response(Problem(422, f"{where}: {first['msg']}"), request)

    async def unknown(request: Request, error: Exception) -> Response:
        return problem_response(unknown_problem(), request)

    app.add_exception_handler(Problem, known)
    app.add_exception_handler(Exception, unknown)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
