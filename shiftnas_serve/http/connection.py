"""HttpConnection: HTTP/1.1 over one connection, bounded in bytes, in time and in number.

An ``asyncio.Protocol`` for uvicorn's setting ``http``; httptools parses. uvicorn's own takes
headers without end, waits for the first request without end, loses the body behind an offer to
upgrade, and does not answer a client that has said that it will send no more. Bodies are the
application's to bound (``body``): until it reads, 64 kB lie here, and what the read of the socket
that went beyond them brought (uvloop: 256,000 bytes at most).
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import structlog
from starlette.types import ASGIApp, Message, Scope
from uvicorn import Config
from uvicorn.server import ServerState

from shiftnas_serve.http.answers import problem_response
from shiftnas_serve.http.context import request_id
from shiftnas_serve.http.head import check_head
from shiftnas_serve.problem import Problem, busy

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers, of what follows a chunked body, and of a chunk's extensions."""
MAX_PIPELINED = 16
HEAD_S = 10.0
"""For a request's headers to be complete, for the rest of a body that was answered before it came,
and for a client to take some of its answer. At most twice as long: the timer looks that seldom."""
READ_AHEAD = 65_536
CLOSING_S = 0.5
"""How long kept connections are still answered when nothing new is taken any more."""

_MOST_CONNECTIONS = 16_384
_CONTROLS = bytes({*range(32), 127} - {9})
"""None of them may stand in a header, but for the end of its line."""
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus
}

_TOO_LONG = f"the headers are longer than {MAX_HEAD_BYTES:,} bytes"

_LOG = structlog.get_logger("shiftnas_serve.connection")


class Exchange:
    """One request and its answer."""

    def __init__(self, connection: HttpConnection, scope: Scope, *, keep_alive: bool) -> None:
        self.scope, self.keep_alive = scope, keep_alive
        expected = [value.lower() for name, value in scope["headers"] if name == b"expect"]
        # (HTTP/1.0 does not know it)
        self.expects_continue = expected == [b"100-continue"] and scope["http_version"] != "1.0"
        self.body = bytearray()
        self.complete = self.begun = self.done = self.gone = False
        self._connection = connection
        self._delivered = False
        self._head = b""

    async def receive(self) -> Message:
        """As ASGI wants it. A body comes whole, or in pieces of ``READ_AHEAD``."""
        if self.expects_continue:
            self.expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.gone and not self.done:
            if not self._delivered and (self.complete or len(self.body) >= READ_AHEAD):
                body, self.body = bytes(self.body), bytearray()
                self._delivered = self.complete
                return {"type": "http.request", "body": body, "more_body": not self.complete}
            self._connection.resume_reading()
            self._connection.moved.clear()
            await self._connection.moved.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """As ASGI wants it. The head goes out with the first piece of the body."""
        if self.gone:
            return
        if message["type"] == "http.response.start":
            if self.begun:  # by an error in the middle: no second answer may follow
                self.gone = True
                self._connection.transport.abort()
                return
            self._head = self._written_head(message)
            return
        assert not self.done, "an answer ends once"
        body = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
        self._connection.write(self._head + body)
        self._head, self.begun = b"", True
        await self._connection.drained.wait()  # whoever sends much waits for who takes it
        if not message.get("more_body", False):
            self.done = True
            self._connection.answered()

    def _written_head(self, message: Message) -> bytes:
        status = message["status"]
        # A body that nobody will read would be taken for the next request.
        self.keep_alive = self.keep_alive and self.complete and not self._connection.stopping
        self.expects_continue = False
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        framed = status in (204, 304) or self.scope["method"] == "HEAD"
        for name, value in (*self._connection.server.default_headers, *message.get("headers", ())):
            name = name.lower()
            if name == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            framed = framed or name == b"content-length"
            lines.append(name + b": " + value)
        self.keep_alive = self.keep_alive and framed  # else the end of the body is that of all
        if not self.keep_alive:
            lines.append(b"connection: close")
        head = b"\r\n".join((*lines, b"", b""))
        ends = 2 * (len(lines) + 1)
        assert len(head.translate(None, _CONTROLS)) == len(head) - ends, head
        return head

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer. A client must not take a part for the whole answer."""
        # Whoever reads the body then need not watch how long that takes.
        self.scope["state"]["whole"] = self.complete
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:  # noqa: BLE001 (in the log, and the connection is closed)
            _LOG.exception("an error in the application", path=self.scope["path"])
        finally:
            if not self.done and not self.gone:
                self._connection.transport.abort()
            self._connection.server.tasks.discard(cast("Any", asyncio.current_task()))


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
        self.server, self._app_state = server_state, app_state
        self._keep_alive_s = config.timeout_keep_alive
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport = cast("Any", None)
        self.drained, self.moved = asyncio.Event(), asyncio.Event()
        self.drained.set()
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        self._in_head = False
        # Bytes since the last that were body or the end of headers or of a request.
        self._unread_bytes = 0
        # What is not answered: the first is being answered, the last may still be coming.
        self._exchanges: deque[Exchange] = deque()
        self._answered = 0
        self.stopping = False
        self._ended = self._lingering = False
        self._refusal: Problem | None = None  # when all before it is answered
        self._timer: asyncio.TimerHandle | None = None
        self._seen: tuple[object, ...] = ()
        self._unchanged = 0

    # -- the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, unless there are as many as the process has room for (503)."""
        self.transport = cast("asyncio.Transport", transport)
        self.server.connections.add(cast("Any", self))
        self._look()
        most = connection_limit()
        if len(self.server.connections) > most:
            full = f"{most} connections are open already; try again"
            self._refuse(Problem(503, full, headers={"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it; who waits for the client hears that it has gone."""
        self.server.connections.discard(cast("Any", self))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for exchange in self._exchanges:
            exchange.gone = True
        self.moved.set()
        self.drained.set()

    def eof_received(self) -> bool:
        """The client sends no more: it gets the answers to what it has sent whole."""
        self._ended = True
        if self._refusal is not None:
            return True
        return bool(self._exchanges) and self._exchanges[-1].complete and not self._in_head

    def shutdown(self) -> None:
        """The server stops: close with the next answer, or soon: one may be asked for already."""
        self.stopping = True
        self._loop.call_later(CLOSING_S, self._close_idle)

    def _close_idle(self) -> None:
        if not self._exchanges:
            self.transport.close()

    def pause_writing(self) -> None:
        self.drained.clear()

    def resume_writing(self) -> None:
        self.drained.set()

    def resume_reading(self) -> None:
        """The application reads on."""
        if len(self._exchanges) < 2:
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def _look(self) -> None:
        """End what has stood still since the last look, or longer, and look again later."""
        self._timer = self._loop.call_later(HEAD_S, self._look)
        answers, unsent_bytes = bool(self._exchanges), self.transport.get_write_buffer_size()
        seen = (answers, bool(self._unread_bytes), unsent_bytes, self._answered)
        self._unchanged = self._unchanged + 1 if seen == self._seen else 0
        self._seen = seen
        if not self._unchanged:
            return
        if unsent_bytes:
            self.transport.abort()  # nothing of an answer was taken
        elif self._lingering:
            self.transport.close()
        elif self._unread_bytes and not answers:
            self._refuse(Problem(408, f"no complete headers came in {HEAD_S:g} s"))
        elif not answers and (not self._answered or self._unchanged * HEAD_S >= self._keep_alive_s):
            self.transport.close()

    # -- what the parser finds ---------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Count what is neither body nor the end of anything; 431 where that is too much."""
        if self._lingering or self._refusal is not None:
            return
        self._unread_bytes += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError as error:
            given = error.__context__  # what a callback raised
            plain = Problem(400, "this is not an HTTP request")
            self._refuse(given if isinstance(given, Problem) else plain)
            return
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(Problem(431, _TOO_LONG))

    def _parse(self, data: bytes) -> bytes:
        """What is still to be parsed.

        An offer to upgrade is not taken. The parser takes what follows for another protocol, so a
        new one begins with the same head without the offer.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            version = self._parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, version)]
            lines += [b"%b: %b" % one for one in self._headers if one[0] != b"upgrade"]
            self._parser = httptools.HttpRequestParser(self)
            return b"\r\n".join([*lines, b"", data[offer.args[0] :]])
        return b""

    def on_message_begin(self) -> None:
        self._in_head = True
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a chunked body is nobody's header
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The application begins, or waits for the one before it."""
        self._in_head = False
        parser = self._parser
        if self._unread_bytes > MAX_HEAD_BYTES:  # maybe with some body
            lengths = (len(name) + len(value) + 4 for name, value in self._headers)
            if len(self._url) + sum(lengths) > MAX_HEAD_BYTES:
                raise Problem(431, _TOO_LONG)
        if parser.get_method() == b"CONNECT":  # what follows would not be HTTP
            allowed = {"Allow": "GET, HEAD, POST, PUT"}
            raise Problem(405, "CONNECT is for proxies; ask this server itself", headers=allowed)
        if parser.should_upgrade():
            return  # it comes once more (``_parse``)
        if len(self._exchanges) > MAX_PIPELINED:
            raise busy(f"{MAX_PIPELINED} requests wait on this connection")
        self._unread_bytes = 0
        version = parser.get_http_version()
        check_head(version, self._headers)
        keep_alive = version != "1.0" and parser.should_keep_alive()
        exchange = Exchange(self, self._scope(version), keep_alive=keep_alive)
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            self._start()
        else:
            self.transport.pause_reading()

    def _scope(self, version: str) -> Scope:
        url = httptools.parse_url(self._url)
        raw_path = url.path or b"/"  # http://host alone
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "scheme": "http",
            "method": self._parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
            "state": self._app_state.copy(),
        }

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        if self._exchanges:  # (else it was answered already)
            exchange = self._exchanges[-1]
            exchange.body += body
            if len(exchange.body) >= READ_AHEAD:
                self.moved.set()
                self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._exchanges:
            self._unread_bytes = 0
            self._exchanges[-1].complete = True
            self.moved.set()

    # -- one after the other -----------------------------------------------------------------

    def _start(self) -> None:
        self.server.tasks.add(self._loop.create_task(self._exchanges[0].run(self._app)))

    def answered(self) -> None:
        """The next request may come."""
        exchange = self._exchanges.popleft()
        self.moved.set()
        self.server.total_requests += 1
        self._answered += 1
        if self.transport.is_closing():
            return
        if not exchange.keep_alive and not exchange.complete and not self._ended:
            # A client that still sends must not lose its answer to a reset.
            self._lingering = True
            if self.transport.can_write_eof():
                self.transport.write_eof()
        elif not exchange.keep_alive:
            self.transport.close()
        elif self._exchanges:
            self._start()
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._ended:
            self.transport.close()
        self.resume_reading()

    def _refuse(self, problem: Problem) -> None:
        """Answer and close: where a next request would begin is not known.

        After the answers to what came before; a request that is being answered is cut off.
        """
        if len(self._exchanges) > 1 and not self._exchanges[-1].complete:
            self._exchanges.pop()  # it has not begun, and is what is refused
        if self._exchanges and self._exchanges[0].complete:
            self._refusal = problem
            return
        if self._exchanges and self._exchanges[0].begun:
            self.transport.abort()
            return
        answer = problem_response(problem, {"path": "", "state": {"request_id": request_id({})}})
        lines = [_STATUS_LINES[problem.status], b"connection: close"]
        lines += [b"%b: %b" % field for field in answer.raw_headers]
        self.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()


def connection_limit() -> int:
    """How many connections this process may have open, with its limit of descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    # The rest is for all else that a process opens: a bundle that is read, a device.
    return max(1, min(descriptors * 7 // 8, _MOST_CONNECTIONS))
