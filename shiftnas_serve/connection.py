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
import math
import os
import resource
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from shiftnas_serve.problem import Problem, problem_document

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers, of what follows a chunked body, and of a chunk's extensions."""
MAX_PIPELINED = 16
HEAD_S = 10.0
"""For a request's headers to be complete, for the rest of a body that was answered before it came,
and for a client to take some of its answer. At most twice as long: the timer looks that seldom."""
READ_AHEAD = "shiftnas.read_ahead"
"""Key in ``scope["extensions"]`` of a function: bytes of body that may come -> all are here."""

# For all else that a process opens: sockets to workers, files of metrics, a bundle that is read.
_OWN_DESCRIPTORS = 128
_MOST_CONNECTIONS = 16_384


class Connection(HttpToolsProtocol):
    """One client's connection. For ``uvicorn.Config(http=...)``, with ``ws="none"``."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # Bytes since the last that were body or the end of headers or of a request.
        self._unread_bytes = 0
        # When headers began that are not complete, and since when nothing has been asked.
        self._head_s: float | None = None
        self._idle_s = self.loop.time()
        self._receiving = False  # a body, maybe of no bytes
        self._read_ahead = HIGH_WATER_LIMIT
        self._unsent_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: Problem | None = None

    # -- the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, unless there are as many as the process has room for (503)."""
        super().connection_made(transport)
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
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what is neither body nor the end of anything; 431 where that is too much."""
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_long())

    def _look(self) -> None:
        """End what has taken too long, and look again later."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent == self._unsent_bytes:
            self.transport.abort()  # nothing of an answer was taken since the last look
            return
        late = not unsent and not self.transport.is_closing() and self.loop.time() >= self._due_s()
        if late and self._head_s is not None:
            self._refuse(Problem(408, f"no complete headers came in {HEAD_S:g} s"))
        elif late:
            self.transport.close()
        self._unsent_bytes = unsent
        self._timer = self.loop.call_later(HEAD_S, self._look)

    def _due_s(self) -> float:
        if self.cycle is not None and not self.cycle.response_complete:
            return math.inf  # the application's time
        if self._head_s is not None:
            return max(self._head_s, self._idle_s) + HEAD_S
        fresh = self.cycle is None or self._receiving
        return self._idle_s + (HEAD_S if fresh else self.timeout_keep_alive)

    # -- what the parser finds ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_s = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; what follows a chunked body is nobody's header and forgotten."""
        if self._head_s is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The application begins."""
        if self._unread_bytes > MAX_HEAD_BYTES:  # maybe with some body
            lengths = (len(name) + len(value) + 4 for name, value in self.headers)
            if len(self.url) + sum(lengths) > MAX_HEAD_BYTES:
                self._stop_parser(_too_long())
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop_parser(Problem(429, f"{MAX_PIPELINED} requests wait on this connection"))
        self._unread_bytes, self._head_s, self._receiving = 0, None, True
        self._read_ahead = HIGH_WATER_LIMIT
        super().on_headers_complete()
        extensions = {READ_AHEAD: partial(self._read_up_to, self.cycle)}
        cast(dict[str, Any], self.scope)["extensions"] = extensions

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
        super().on_message_complete()

    def _read_up_to(self, cycle: RequestResponseCycle, size_bytes: int) -> bool:
        """Take so much of a request's body before its application is woken again.

        Answers whether all of it is here.
        """
        if cycle is self.cycle and self._receiving:
            self._read_ahead = max(size_bytes, HIGH_WATER_LIMIT + 1)
            if len(cycle.body) <= self._read_ahead:
                cycle.message_event.clear()
        return not cycle.more_body

    def on_response_complete(self) -> None:
        """The next request may come: as uvicorn's own, without a timer for it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.cycle.response_complete:
            self.cycle.body.clear()  # what nobody asked for
        self._idle_s = self.loop.time()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    # -- refusals ----------------------------------------------------------------------------

    def _stop_parser(self, problem: Problem) -> None:
        self._refusal = problem
        raise problem  # out of the parser, to ``send_400_response``

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read, or was stopped at."""
        self._refuse(self._refusal or Problem(400, msg))

    def _refuse(self, problem: Problem) -> None:
        """Answer and close: there is no telling where a next request would begin."""
        document = problem_document(problem, os.urandom(16).hex())
        self.transport.write(_answer(problem.status, problem.headers, json.dumps(document)))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """No line in the log for what any client may send at will."""


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
