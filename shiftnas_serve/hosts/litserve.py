"""LitServe: its HTTP processes hand requests to its workers, each of which has the whole app.

For those who deploy with LitServe: its devices, its workers, its restarts. What a request asks and
what it gets is the app's to say, in the worker; here it is carried there and back.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import litserve
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from shiftnas_serve.app import App, end_soon
from shiftnas_serve.hosts.uvicorn import KEEP_ALIVE_S
from shiftnas_serve.http.answers import problem_response
from shiftnas_serve.http.connection import HttpConnection
from shiftnas_serve.http.context import request_id
from shiftnas_serve.library import Engine
from shiftnas_serve.log import configure_log
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_CARRIED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string")
# A worker answers in time, if only to say that there was none; after that it is lost.
_GRACE_S = 5.0


class Carried(NamedTuple):
    """A request on its way to a worker: its ASGI scope, and its body."""

    scope: dict[str, Any]
    body: bytes


class Answered(NamedTuple):
    """An answer on its way back."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class WholeApp(LitSpec):
    """Every path is the app's, but LitServe's own ``/``, ``/health`` and ``/info``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.api_path = "/classify"
        self._settings = settings
        self.add_endpoint("/{path:path}", self.carry, _METHODS)

    def decode_request(self, request: Carried, context_kwargs: object = None) -> Carried:
        return request

    def encode_response(self, output: Answered, context_kwargs: object = None) -> Answered:
        return output

    async def carry(self, request: Request) -> Response:
        """Runs in an HTTP process: to a worker and back."""
        try:
            body = await _body(request, self._settings)
            given = await self._answer(Carried(_scope(request), body))
        except Problem as problem:
            return _response(problem, request)
        answer = Response(given.body, given.status)
        answer.raw_headers = given.headers
        return answer

    async def _answer(self, carried: Carried) -> Answered:
        uid, item = uuid.uuid4().hex, ResponseBufferItem(asyncio.Event())
        waiting, queue = self.response_buffer, self.request_queue  # ``setup`` has set them
        assert waiting is not None
        assert queue is not None
        waiting[uid] = item
        try:
            queue.put((self.response_queue_id, uid, time.monotonic(), carried))
            async with asyncio.timeout(self._settings.timeout_s + _GRACE_S):
                await item.event.wait()
        except TimeoutError:
            raise Problem(504, "no worker answered in time; it may have been lost") from None
        finally:
            waiting.pop(uid, None)
        assert item.response is not None
        answered, status = item.response
        if status != LitAPIStatus.OK:
            raise Problem(500, "an error of the server's own; its log has the details")
        return answered


class AppApi(litserve.LitAPI):
    """A worker: one engine, on one device, behind the app."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(spec=WholeApp(settings), enable_async=True)
        self._settings = settings

    def setup(self, device: str) -> None:
        """Load the bundle. ``device``: ``cpu``, or ``cuda:1`` for the second GPU."""
        kind, _, number = device.partition(":")
        if kind == "cuda" and number:  # before CUDA is there: this process sees no other GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = number
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is the parent's to obey
        configure_log(self._settings.log_level, self._settings.log_format)
        self._app = App(self._settings)
        self._app.state.engine = Engine(self._settings, end_soon)

    async def decode_request(self, request: Carried, **named: Any) -> Carried:
        return request

    async def predict(self, x: Carried, **named: Any) -> Answered:
        """What the app answers."""
        return await answer_of(self._app, x)

    async def encode_response(self, output: Answered, **named: Any) -> Answered:
        return output


async def answer_of(app: Callable[..., Awaitable[None]], carried: Carried) -> Answered:
    """What an ASGI app answers to a request whose body is here."""
    messages = iter([{"type": "http.request", "body": carried.body, "more_body": False}])
    parts: list[Message] = []

    async def receive() -> Message:
        for message in messages:
            return message
        await asyncio.Event().wait()  # nobody tells a worker that a client has gone
        raise AssertionError

    async def send(message: Message) -> None:
        parts.append(message)

    await app(dict(carried.scope), receive, send)
    start, *bodies = parts
    body = b"".join(part.get("body", b"") for part in bodies)
    return Answered(start["status"], list(start["headers"]), body)


def _scope(request: Request) -> dict[str, Any]:
    scope = {name: request.scope[name] for name in _CARRIED}
    return scope | {"headers": list(request.scope["headers"])}


async def _body(request: Request, settings: Settings) -> bytes:
    """The body, or as much of it as makes the app say that it is too long. Raises Problem 408."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > settings.max_body_bytes:
        return b""  # its header says it
    body = bytearray()
    try:
        async with asyncio.timeout(settings.timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.max_body_bytes:
                    break
    except TimeoutError:
        raise Problem(408, f"no complete body came in {settings.timeout_s:g} s") from None
    return bytes(body)


def _response(problem: Problem, request: Request) -> Response:
    """A problem of the way to a worker and back, as the app would write it."""
    identity = request_id(request.headers)
    scope = {"path": request.url.path, "state": {"request_id": identity}}
    answer = problem_response(problem, scope)
    answer.headers["Request-Id"] = identity
    return answer


def serve(settings: Settings) -> int:
    """Until it is told to stop: the exit status. Raises ValueError in one line."""
    on_gpu = settings.device != "cpu"
    server = litserve.LitServer(
        AppApi(settings),
        accelerator="cuda" if on_gpu else "cpu",
        devices="auto",
        workers_per_device=settings.processes,
        timeout=False,  # the app has deadlines of its own
        restart_workers=True,
        disable_openapi_url=True,  # the app documents itself
    )
    started_by = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() == started_by:  # LitServe's HTTP processes are forks, with their own ways
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    try:
        server.run(
            host=settings.host,
            port=settings.port,
            log_level=settings.log_level,
            generate_client_file=False,
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            http=HttpConnection,
            ws="none",
        )
    except KeyboardInterrupt:
        pass  # while it was starting
    except RuntimeError as error:
        raise ValueError(f"{error}; the reason stands above") from None
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
    return 0
