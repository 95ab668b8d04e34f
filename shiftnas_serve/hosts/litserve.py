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
from typing import Any, NamedTuple

import litserve
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shiftnas_serve.app import App, end_soon
from shiftnas_serve.hosts import refuse_drain
from shiftnas_serve.hosts.uvicorn import HTTP
from shiftnas_serve.http.answers import problem_response, unknown_problem
from shiftnas_serve.http.body import accepted_type, read_body
from shiftnas_serve.http.context import plain_headers, request_id
from shiftnas_serve.http.keys import ApiKeys
from shiftnas_serve.http.options import read_budgets, read_top_k, refuse_query
from shiftnas_serve.library import Engine
from shiftnas_serve.log import configure_log
from shiftnas_serve.problem import Problem
from shiftnas_serve.scheduling.room import Room
from shiftnas_serve.settings import Settings

_CARRIED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string")
# A worker answers in time, if only to say that there was none; after that it is lost.
_GRACE_S = 5.0


class Carried(NamedTuple):
    """A request on its way to a worker: its ASGI scope, and its body."""

    scope: dict[str, Any]
    body: bytes


class Answered(NamedTuple):
    """An answer on its way back: what the app sent."""

    messages: list[Message]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self.messages:
            await send(message)


class Way(LitSpec):
    """The way to a worker and back: by LitServe's queue, with nothing of its own forms."""

    def __init__(self) -> None:
        super().__init__()
        self.api_path = "/classify"

    def decode_request(self, request: Carried, context_kwargs: object = None) -> Carried:
        return request

    def encode_response(self, output: Answered, context_kwargs: object = None) -> Answered:
        return output

    async def ask(self, carried: Carried, within_s: float) -> Answered:
        """What a worker answers. Raises Problem: 500, 504."""
        uid, item = uuid.uuid4().hex, ResponseBufferItem(asyncio.Event())
        waiting, queue = self.response_buffer, self.request_queue  # ``setup`` has set them
        assert waiting is not None
        assert queue is not None
        waiting[uid] = item
        try:
            queue.put((self.response_queue_id, uid, time.monotonic(), carried))
            async with asyncio.timeout(within_s):
                await item.event.wait()
        except TimeoutError:
            raise Problem(504, "no worker answered in time; it may have been lost") from None
        finally:
            waiting.pop(uid, None)
        assert item.response is not None
        answered, status = item.response
        if status != LitAPIStatus.OK:
            raise unknown_problem()
        return answered


class Carry:
    """Middleware of LitServe's HTTP processes: every request is the app's, whatever its path."""

    def __init__(self, app: ASGIApp, way: Way, settings: Settings) -> None:
        self._litserve, self._way, self._settings = app, way, settings
        self._room = Room(1, settings.max_waiting_bytes)
        self._keys = ApiKeys(settings.api_keys, "key")
        self._admin_keys = ApiKeys(settings.admin_keys, "admin key")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._litserve(scope, receive, send)
            return
        headers = plain_headers(scope)
        scope["state"] = {"headers": headers, "request_id": request_id(headers)}
        carried = {name: scope[name] for name in (*_CARRIED, "headers")}
        answer: ASGIApp
        try:
            with self._room.share() as share:
                body = b""
                if self._would_be_read(scope):
                    body = await read_body(scope, receive, share, self._settings)
                answer = await self._way.ask(
                    Carried(carried, body), self._settings.timeout_s + _GRACE_S
                )
        except Problem as problem:
            problem.headers["Request-Id"] = scope["state"]["request_id"]
            answer = problem_response(problem, scope)
        await answer(scope, receive, send)

    def _would_be_read(self, scope: Scope) -> bool:
        """Whether the app would look at the body: what it refuses before must take no room here."""
        headers, path = scope["state"]["headers"], scope["path"]
        try:
            if path == "/admin/reload":
                self._admin_keys.check(headers)
                return bool(self._settings.admin_keys)
            self._keys.check(headers)
            if path == "/classify":
                accepted_type(headers)
                read_top_k(scope["query_string"], 1)
            elif path.startswith("/v2/"):
                refuse_query(scope["query_string"])
            else:
                return False
            read_budgets(scope["headers"])
        except Problem:  # the app says it
            return False
        return scope["method"] in ("POST", "PUT")


class AppApi(litserve.LitAPI):
    """A worker: one engine, on one device, behind the app."""

    def __init__(self, way: Way, settings: Settings) -> None:
        super().__init__(spec=way, enable_async=True)
        self.settings = settings

    def setup(self, device: str) -> None:
        """Load the bundle. ``device``: ``cpu``, or ``cuda:1`` for the second GPU."""
        kind, _, number = device.partition(":")
        if kind == "cuda" and number:  # before CUDA is there: this process sees no other GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = number
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is the parent's to obey
        configure_log(self.settings.log_level, self.settings.log_format)
        self._app = App(self.settings)
        self._app.state.engine = Engine(self.settings, end_soon)

    async def decode_request(self, request: Carried, **named: Any) -> Carried:
        return request

    async def predict(self, x: Carried, **named: Any) -> Answered:
        """What the app answers."""
        return await answer_of(self._app, x)

    async def encode_response(self, output: Answered, **named: Any) -> Answered:
        return output


async def answer_of(app: ASGIApp, carried: Carried) -> Answered:
    """What an ASGI app answers to a request whose body is here."""
    given = iter([{"type": "http.request", "body": carried.body, "more_body": False}])
    messages: list[Message] = []

    async def receive() -> Message:
        for message in given:
            return message
        await asyncio.Event().wait()  # nobody tells a worker that a client has gone
        raise AssertionError

    async def send(message: Message) -> None:
        messages.append(message)

    await app(carried.scope, receive, send)
    return Answered(messages)


def serve(settings: Settings) -> int:
    """Until it is told to stop: the exit status. Raises ValueError in one line."""
    refuse_drain(settings, "LitServe")
    on_gpu = settings.device != "cpu"
    way = Way()
    api = AppApi(way, settings)
    server = litserve.LitServer(
        api,
        middlewares=[(Carry, {"way": way, "settings": settings})],
        accelerator="cuda" if on_gpu else "cpu",
        devices="auto",
        workers_per_device=settings.processes,
        timeout=False,  # the app has deadlines of its own
        restart_workers=True,
    )
    # A worker knows how many there are: with several, none reloads by itself.
    count = settings.processes * len(server.devices)
    api.settings = settings.model_copy(update={"processes": count})
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
            **HTTP,
        )
    except KeyboardInterrupt:
        pass  # while it was starting
    except RuntimeError as error:
        raise ValueError(f"{error}; the reason stands above") from None
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
    return 0
