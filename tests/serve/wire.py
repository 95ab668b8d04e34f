"""One connection at a time, with a transport that only notes what is done to it: no server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from shiftnas_serve.http.connection import (
    HttpConnection,
)

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


class Wire:
    """The other end of a transport."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = self.aborted = self.paused = self.ended = False
        self.pauses = self.unsent = 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused, self.pauses = True, self.pauses + 1

    def resume_reading(self) -> None:
        self.paused = False

    @property
    def status(self) -> int:
        return int(self.sent.split()[1])


class Clock:
    """The loop's time, which passes when it is told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._due = 0.0, list[tuple[float, Callable[[], None]]]()
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop, "call_later", self._call_later)

    def _call_later(self, delay: float, call: Callable[[], None]) -> Any:
        self._due.append((self.now + delay, call))
        return asyncio.Handle(call, (), asyncio.get_running_loop())

    def pass_s(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due:
            one = min(self._due, key=lambda one: one[0])
            if one[0] > end:
                break
            self._due.remove(one)
            self.now = one[0]
            one[1]()
        self.now = end


async def answer(scope: Scope, receive: Receive, send: Send, body: bytes = b"ok") -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


def connect(app: Any = answer, state: ServerState | None = None) -> tuple[HttpConnection, Wire]:
    config = Config(app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=75)
    config.load()
    made, wire = HttpConnection(config, state or ServerState(), {}), Wire()
    made.connection_made(wire)  # type: ignore[arg-type]
    return made, wire


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await answer(scope, receive, send, b"%b %b" % (scope["method"].encode(), body))


def statuses(wire: Wire) -> list[int]:
    return [int(one[:3]) for one in wire.sent.split(b"HTTP/1.1 ")[1:]]
