"""The short way to /classify: errors are problems there, too, and other paths go the long way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message

from shiftnas_serve.app import Front
from shiftnas_serve.problem import Problem, answering_problems
from shiftnas_serve.request_context import RequestContext


async def call(app: ASGIApp, path: str, sent: list[Message], *more: tuple[bytes, bytes]) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"request-id", b"seven"), (b"request-id", b"eight"), *more]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": headers,
        "query_string": b"",
    }
    await app(scope, receive, send)


def front(endpoint: Callable[[Request], Awaitable[ASGIApp]]) -> ASGIApp:
    rest = PlainTextResponse("the long way")
    return RequestContext(Front("/classify", answering_problems(endpoint), rest))


def test_one_path_is_answered_first_and_the_others_go_on():
    async def endpoint(request: Request) -> ASGIApp:
        return PlainTextResponse(request.state.headers["request-id"])

    for path, wanted in (("/classify", b"seven"), ("/classify/", b"the long way")):
        sent: list[Message] = []
        asyncio.run(call(front(endpoint), path, sent))
        assert [sent[0]["status"], sent[1]["body"]] == [200, wanted]
        assert dict(sent[0]["headers"])[b"request-id"] == b"seven"  # of several the first


def test_a_problem_is_an_answer():
    async def endpoint(request: Request) -> ASGIApp:
        raise Problem(429, "too many", headers={"Retry-After": "3"})

    sent: list[Message] = []
    asyncio.run(call(front(endpoint), "/classify", sent))
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 429
    assert headers[b"retry-after"] == b"3"
    assert headers[b"content-type"] == b"application/problem+json"
    assert json.loads(sent[1]["body"])["request_id"] == "seven"


def test_an_unforeseen_error_is_answered_and_not_swallowed():
    async def endpoint(request: Request) -> ASGIApp:
        raise RuntimeError("a secret")

    sent: list[Message] = []
    with pytest.raises(RuntimeError):
        asyncio.run(call(front(endpoint), "/classify", sent))
    assert sent[0]["status"] == 500
    assert b"secret" not in sent[1]["body"]


@pytest.mark.parametrize("count", [1, 2])
def test_of_several_callers_traces_none_is_continued(count):
    """As W3C's own tests have it, also where all say the same."""
    given = (b"traceparent", b"00-%s-%s-01" % (b"a" * 32, b"b" * 16))
    sent: list[Message] = []
    asyncio.run(call(RequestContext(PlainTextResponse("x")), "/", sent, *[given] * count))
    continued = b"a" * 32 in dict(sent[0]["headers"])[b"traceresponse"]
    assert continued == (count == 1)
