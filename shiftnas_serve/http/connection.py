"""HttpConnection: HTTP/1.1 over one connection, bounded in bytes, in time and in number.

An ``asyncio.Protocol`` for uvicorn's setting ``http``; httptools parses. uvicorn's own takes
headers without end, waits for the first request without end, loses the body behind an offer to
upgrade, and does not answer a client that has said that it will send no more. Bodies are the
application's to bound (``body``): until it reads, no more than 64 kB lie here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import structlog
from starlette.types import ASGIApp, Message, Scope
from uvicorn import Config
from uvicorn.server import ServerState

from shiftnas_serve.http.answers import problem_document
from shiftnas_serve.problem import Problem

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers, of what follows a chunked body, and of a chunk's extensions."""
MAX_PIPELINED = 16
HEAD_S = 10.0
"""For a request's headers to be complete, for the rest of a body that was answered before it came,
and for a client to take some of its answer. At most twice as long: the timer looks that seldom."""
READ_AHEAD = 65_536
CLOSING_S = 0.5
"""How long kept connections are still answered when nothing new is taken any more."""

# For all else that a process opens: a bundle that is read, a device.
_OWN_DESCRIPTORS = 128
_MOST_CONNECTIONS = 16_384
_BAD_IN_HEADER = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

_FRAMING = (b"content-length", b"transfer-encoding")

_LOG = structlog.get_logger("shiftnas_serve.connection")


class Exchange:
    """One request and its answer."""

    def __init__(self, connection: HttpConnection, scope: Scope, *, keep_alive: bool) -> None:
        self.scope, self.keep_alive = scope, keep_alive
        self.expects_continue = False
        self.complete = self.done = self.gone = False
        self._connection = connection
        self._delivered = False
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self._moved = asyncio.Event()
        self._head: Message | None = None
        self._begun = self._chunked = False

    # -- what comes in -----------------------------------------------------------------------

    def feed(self, piece: bytes) -> bool:
        """Part of the body; whether that is enough for now."""
        if self.done:
            return False
        self._pieces.append(piece)
        self._size_bytes += len(piece)
        if self._size_bytes < READ_AHEAD:
            return False
        self._moved.set()
        return True

    def end(self, *, gone: bool = False) -> None:
        """All of the request is here, or its client is gone."""
        self.complete, self.gone = self.complete or not gone, gone
        self._moved.set()

    async def receive(self) -> Message:
        """As ASGI wants it."""
        if self.expects_continue:
            self.expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            if self.gone or self.done:
                return {"type": "http.disconnect"}
            enough = self.complete or self._size_bytes >= READ_AHEAD
            if enough and not self._delivered:
                body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces, self._size_bytes = list[bytes](), 0
                self._delivered = self.complete
                return {"type": "http.request", "body": body, "more_body": not self.complete}
            self._connection.resume_reading()
            self._moved.clear()
            await self._moved.wait()

    # -- what goes out -----------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """As ASGI wants it. The head goes out with the first piece of the body."""
        if self.gone:
            return
        if message["type"] == "http.response.start":
            assert self._head is None, "an answer begins once"
            self._head = message
            return
        assert message["type"] == "http.response.body", message["type"]
        assert self._head is not None, "an answer begins with its head"
        assert not self.done, "an answer ends once"
        body, more = message.get("body", b""), message.get("more_body", False)
        head = b"" if self._begun else self._write_head(self._head)
        self._begun = True
        if self.scope["method"] == "HEAD":
            body = b""
        elif self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (
                b"" if more else b"0\r\n\r\n"
            )
        self._connection.write(head + body if head else body)
        if not more:
            self.done = True
            self._moved.set()
            self._connection.answered(self)
        else:
            await self._connection.drained.wait()

    def _write_head(self, message: Message) -> bytes:
        # A body that nobody will read would be taken for the next request.
        self.keep_alive = self.keep_alive and self.complete and not self._connection.stopping
        self.expects_continue = False
        lines = [_STATUS_LINES.get(message["status"]) or b"HTTP/1.1 %d \r\n" % message["status"]]
        framed = message["status"] in (204, 304) or self.scope["method"] == "HEAD"
        for name, value in (*self._connection.default_headers, *message.get("headers", ())):
            assert not _BAD_IN_HEADER.search(value), (name, value)
            name = name.lower()
            if name == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            framed = framed or name == b"content-length"
            lines += [name, b": ", value, b"\r\n"]
        if not framed:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._connection.abort()
            raise
        except Exception:  # noqa: BLE001 (in the log, and the connection is closed)
            _LOG.exception("an error in the application", path=self.scope["path"])
        if not self.done and not self.gone:
            self._connection.abort()  # the client must not take it for a whole answer


class HttpConnection(asyncio.Protocol):
    """One client's connection. uvicorn makes it, and calls ``shutdown`` when it stops."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = cast("ASGIApp", config.loaded_app)
        self._server, self._app_state = server_state, app_state
        self._keep_alive_s = config.timeout_keep_alive
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast("Any", None)
        self.drained = asyncio.Event()
        self.drained.set()
        self._peers: dict[str, object] = {}
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        self._in_head = False
        self._upgrading = self._replaying = False
        # Bytes since the last that were body or the end of headers or of a request.
        self._unread_bytes = 0
        self._receiving: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._answering: Exchange | None = None
        self._answered = 0
        self.stopping = False
        self._paused = self._ended = self._lingering = False
        self._timer: asyncio.TimerHandle | None = None
        self._seen: tuple[object, ...] = ()
        self._unchanged = 0
        self._refusal: Problem | None = None

    # -- the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, unless there are as many as the process has room for (503)."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(cast("Any", self))
        self._peers = {
            "client": _address(transport.get_extra_info("peername")),
            "server": _address(transport.get_extra_info("sockname")),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        }
        self._seen = self._state()
        self._timer = self._loop.call_later(HEAD_S, self._look)
        most = connection_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if len(self._server.connections) > most:
            full = f"{most} connections are open already; try again"
            self._refuse(Problem(503, full, headers={"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it; who waits for the client hears that it has gone."""
        self._server.connections.discard(cast("Any", self))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for exchange in (self._answering, self._receiving, *self._waiting):
            if exchange is not None:
                exchange.end(gone=True)
        self._waiting.clear()
        self.drained.set()

    def eof_received(self) -> bool:
        """The client sends no more: it gets the answers to what it has sent whole."""
        self._ended = True
        return self._answering is not None and self._receiving is None and not self._in_head

    def shutdown(self) -> None:
        """The server stops: close with the next answer, or soon.

        Not at once: a request may be on its way.
        """
        self.stopping = True
        self._loop.call_later(CLOSING_S, self._close_idle)

    def _close_idle(self) -> None:
        if self._answering is None:
            self._transport.close()

    def pause_writing(self) -> None:
        """The client takes nothing."""
        self.drained.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self.drained.set()

    def resume_reading(self) -> None:
        """The application reads on."""
        if self._paused and not self._waiting:
            self._paused = False
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """To the client."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """uvicorn's, of every answer."""
        return self._server.default_headers

    def _look(self) -> None:
        """End what has stood still since the last look, or longer, and look again later."""
        seen = self._state()
        self._unchanged = self._unchanged + 1 if seen == self._seen else 0
        self._seen = seen
        waits, unsent_bytes, _ = seen
        if self._unchanged and unsent_bytes:
            self._transport.abort()  # nothing of an answer was taken
            return
        if self._unchanged and not self._transport.is_closing():
            idle_s = self._unchanged * HEAD_S
            if waits == "headers":
                self._refuse(Problem(408, f"no complete headers came in {HEAD_S:g} s"))
            elif waits == "anything" or (waits == "idle" and idle_s >= self._keep_alive_s):
                self._transport.close()
        self._timer = self._loop.call_later(HEAD_S, self._look)

    def _state(self) -> tuple[str, int, int]:
        """What it waits for, how much of an answer is not sent, and a count of answers."""
        if self._lingering:
            waits = "anything"
        elif self._answering is not None:
            waits = "application"
        elif self._unread_bytes:
            waits = "headers"
        else:
            waits = "idle" if self._answered else "anything"
        return waits, self._transport.get_write_buffer_size(), self._answered

    # -- what the parser finds ---------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Count what is neither body nor the end of anything; 431 where that is too much."""
        if self._lingering:
            return
        self._unread_bytes += len(data)
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as pause:
                    data = data[pause.args[0] :]
                    self._ignore_upgrade()
        except httptools.HttpParserError:
            self._refuse(self._refusal or Problem(400, "this is no HTTP request"))
            return
        if self._unread_bytes > MAX_HEAD_BYTES and not self._transport.is_closing():
            self._refuse(_too_long())

    def _ignore_upgrade(self) -> None:
        """Go on behind the head of a request that offered an upgrade, by its own framing.

        The parser takes what follows for another protocol. A new one is told of the framing alone.
        """
        framing = [one for one in self._headers if one[0] in _FRAMING]
        self._upgrading, self._replaying = False, True
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(
            b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % one for one in framing) + b"\r\n"
        )
        self._replaying = False

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        if not self._replaying:
            self._url, self._headers = b"", list[tuple[bytes, bytes]]()

    def on_url(self, url: bytes) -> None:
        """Part of it."""
        if not self._replaying:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field. What follows a chunked body is nobody's header."""
        if self._in_head and not self._replaying:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The application begins, or waits for the one before it."""
        self._in_head = False
        if self._replaying:
            return
        if self._unread_bytes > MAX_HEAD_BYTES:  # maybe with some body
            lengths = (len(name) + len(value) + 4 for name, value in self._headers)
            if len(self._url) + sum(lengths) > MAX_HEAD_BYTES:
                self._stop_parser(_too_long())
        if len(self._waiting) >= MAX_PIPELINED:
            self._stop_parser(Problem(429, f"{MAX_PIPELINED} requests wait on this connection"))
        self._unread_bytes = 0
        parser = self._parser
        version = parser.get_http_version()
        keep_alive = version != "1.0" and parser.should_keep_alive()
        if parser.should_upgrade():
            self._upgrading = True
            tokens = b",".join([v for n, v in self._headers if n == b"connection"]).lower()
            keep_alive = version != "1.0" and b"close" not in tokens
        exchange = Exchange(self, self._scope(version), keep_alive=keep_alive)
        expects = [v for n, v in self._headers if n == b"expect"]
        exchange.expects_continue = bool(expects) and expects[0].lower() == b"100-continue"
        self._receiving = exchange
        if self._answering is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self._pause()

    def _scope(self, version: str) -> Scope:
        url = httptools.parse_url(self._url)
        path = url.path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
            "state": self._app_state.copy(),
            "extensions": {},
            **self._peers,
        }

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        self._unread_bytes = 0
        if self._receiving is not None and self._receiving.feed(body):
            self._pause()

    def on_message_complete(self) -> None:
        """A request is all here."""
        if self._upgrading:
            return  # it is not: its body comes
        self._unread_bytes = 0
        if self._receiving is not None:
            self._receiving.end()
            self._receiving = None

    # -- one after the other -----------------------------------------------------------------

    def _start(self, exchange: Exchange) -> None:
        self._answering = exchange
        task = self._loop.create_task(exchange.run(self._app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def answered(self, exchange: Exchange) -> None:
        """The next request may come."""
        self._server.total_requests += 1
        self._answered += 1
        self._answering = None
        if self._transport.is_closing():
            return
        if not exchange.keep_alive:
            self._close(exchange)
        elif self._waiting:
            self._start(self._waiting.popleft())
        elif self._ended:
            self._transport.close()
        self.resume_reading()

    def _close(self, exchange: Exchange) -> None:
        """With the last answer. A client that still sends must not lose it to a reset."""
        if exchange.complete or self._ended:
            self._transport.close()
            return
        self._lingering = True
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    # -- refusals ----------------------------------------------------------------------------

    def _stop_parser(self, problem: Problem) -> None:
        self._refusal = problem
        raise problem  # out of the parser

    def _refuse(self, problem: Problem) -> None:
        """Answer and close: there is no telling where a next request would begin."""
        document = problem_document(problem, os.urandom(16).hex())
        self.write(_refusal(problem.status, problem.headers, json.dumps(document)))
        self._transport.close()


def _too_long() -> Problem:
    return Problem(431, f"the headers are longer than {MAX_HEAD_BYTES:,} bytes")


def _address(name: object) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


def connection_limit(descriptors: int) -> int:
    """How many connections a process with so many descriptors (-1: no limit) may have open."""
    if descriptors < 0:
        return _MOST_CONNECTIONS
    return max(1, min(descriptors - min(_OWN_DESCRIPTORS, descriptors // 2), _MOST_CONNECTIONS))


def _refusal(status: int, headers: Mapping[str, str], body: str) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = (
        f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
        f"{''.join(lines)}connection: close\r\n\r\n"
    )
    return _STATUS_LINES[status] + (head + body).encode("ascii")
