"""Connection: uvicorn's HTTP protocol, bounded in bytes, in time and in number.

uvicorn itself takes headers without end, waits for the first request without end, and accepts until
no descriptor is left. Bodies are the application's to bound (``body``): until it says how much it
will take, no more than uvicorn's 64 kB lie here; then all of it comes without a pause.

Between requests uvicorn sets a timer for each; here a connection has one, which looks at the time
now and then and costs a request nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Mapping
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
)

from shiftnas_serve.problem import Problem, problem_document

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers, of what follows a chunked body, and of a chunk's extensions."""
MAX_PIPELINED = 16
HEAD_S = 10.0
"""For a request's headers to be complete, for the rest of a body that was answered before it came,
and for a client to take some of its answer. At most twice as long: the timer looks that seldom."""
READ_AHEAD = "shiftnas.read_ahead"
"""Key in ``scope["extensions"]`` of a function: the scope, bytes of body that may come -> whether
all of them are here."""

# For all else that a process opens: sockets to workers, files of metrics, a bundle that is read.
_OWN_DESCRIPTORS = 128
_MOST_CONNECTIONS = 16_384


class Connection(HttpToolsProtocol):
    """One client's connection. For ``uvicorn.Config(http=...)``, with ``ws="none"``.

    All that runs for every request is written out here rather than called by ``super()``.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # Bytes since the last that were body or the end of headers or of a request.
        self._unread_bytes = 0
        self._answered = 0
        self._receiving = False  # a body, maybe of no bytes
        self._read_ahead = HIGH_WATER_LIMIT
        # One for all requests: one of each would refer to itself, and wait for the collector.
        self._extensions = {READ_AHEAD: self._read_up_to}
        self._timer: asyncio.TimerHandle | None = None
        self._seen: tuple[object, ...] = ()
        self._unchanged = 0
        self._refusal: Problem | None = None

    # -- the connection ----------------------------------------------------------------------

    # (uvicorn's own signature is as narrow)
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, unless there are as many as the process has room for (503)."""
        super().connection_made(transport)
        self._seen = self._state()
        self._timer = self.loop.call_later(HEAD_S, self._look)
        most = connection_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if len(self.connections) > most:
            full = f"{most} connections are open already; try again"
            self._refuse(Problem(503, full, headers={"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._extensions.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what is neither body nor the end of anything; 431 where that is too much."""
        self._unread_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or Problem(400, "this is no HTTP request"))
            return
        except httptools.HttpParserUpgrade:
            pass  # asked for, not granted; the request is answered
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_long())

    def _look(self) -> None:
        """End what has stood still since the last look, or longer, and look again later."""
        seen = self._state()
        self._unchanged = self._unchanged + 1 if seen == self._seen else 0
        self._seen = seen
        waits, unsent_bytes, _ = seen
        if self._unchanged and unsent_bytes:
            self.transport.abort()  # nothing of an answer was taken
            return
        if self._unchanged and not self.transport.is_closing():
            if waits == "headers":
                self._refuse(Problem(408, f"no complete headers came in {HEAD_S:g} s"))
            elif waits == "more" or (
                waits == "idle" and self._unchanged * HEAD_S >= self.timeout_keep_alive
            ):
                self.transport.close()
        self._timer = self.loop.call_later(HEAD_S, self._look)

    def _state(self) -> tuple[str, int, int]:
        """What it waits for, how much of an answer is not sent, and a count of answers."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if self.cycle is not None and not self.cycle.response_complete:
            waits = "application"
        elif self._receiving or (self.cycle is None and not self._unread_bytes):
            waits = "more"  # a body that was answered already, or anything at all
        else:
            waits = "headers" if self._unread_bytes else "idle"
        return waits, unsent_bytes, self._answered

    # -- what the parser finds ---------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """The application begins."""
        if self._unread_bytes > MAX_HEAD_BYTES:  # maybe with some body
            lengths = (len(name) + len(value) + 4 for name, value in self.headers)
            if len(self.url) + sum(lengths) > MAX_HEAD_BYTES:
                self._stop_parser(_too_long())
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop_parser(Problem(429, f"{MAX_PIPELINED} requests wait on this connection"))
        self._unread_bytes, self._receiving = 0, True
        self._read_ahead = HIGH_WATER_LIMIT
        super().on_headers_complete()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]
        self.headers = _NO_MORE  # what follows a chunked body is nobody's header

    def on_body(self, body: bytes) -> None:
        """Part of a body. Who waits for all of it is not woken before."""
        self._unread_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > self._read_ahead:
            self.flow.pause_reading()
            cycle.message_event.set()
        elif self._read_ahead == HIGH_WATER_LIMIT:
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """A request is all here."""
        self._unread_bytes, self._receiving = 0, False
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()

    def _read_up_to(self, scope: Scope, size_bytes: int) -> bool:
        """Take so much of this request's body before its application is woken again.

        Answers whether all of it is here.
        """
        cycle = self.cycle
        if cycle.scope["state"] is not scope["state"]:
            return False  # others came behind it on this connection
        if self._receiving:
            self._read_ahead = max(size_bytes, HIGH_WATER_LIMIT + 1)
            if len(cycle.body) <= self._read_ahead:
                cycle.message_event.clear()
        return not cycle.more_body

    def on_response_complete(self) -> None:
        """The next request may come."""
        self.server_state.total_requests += 1
        self._answered += 1
        if self.transport.is_closing():
            return
        if self.cycle.response_complete:
            self.cycle.body.clear()  # what nobody asked for
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    # -- refusals ----------------------------------------------------------------------------

    def _stop_parser(self, problem: Problem) -> None:
        self._refusal = problem
        raise problem  # out of the parser

    def _refuse(self, problem: Problem) -> None:
        """Answer and close: there is no telling where a next request would begin."""
        document = problem_document(problem, os.urandom(16).hex())
        self.transport.write(_answer(problem.status, problem.headers, json.dumps(document)))
        self.transport.close()


class _Forgotten(list[tuple[bytes, bytes]]):
    def append(self, header: tuple[bytes, bytes]) -> None:
        pass


_NO_MORE = _Forgotten()


def _too_long() -> Problem:
    return Problem(431, f"the headers are longer than {MAX_HEAD_BYTES:,} bytes")


def connection_limit(descriptors: int) -> int:
    """How many connections a process with so many descriptors (-1: no limit) may have open."""
    if descriptors < 0:
        return _MOST_CONNECTIONS
    return max(1, min(descriptors - min(_OWN_DESCRIPTORS, descriptors // 2), _MOST_CONNECTIONS))


def _answer(status: int, headers: Mapping[str, str], body: str) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = (
        f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
        f"{''.join(lines)}connection: close\r\n\r\n"
    )
    return STATUS_LINE[status] + (head + body).encode("ascii")
