"""One connection at a time, with a transport that only notes what is done to it: no server."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from shiftnas_serve.http import connection
from shiftnas_serve.http.connection import (
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    READ_AHEAD,
    HttpConnection,
    connection_limit,
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


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 100),
        (b"GET / HTTP/1.1\r\na: ", b"b" * 1000),
        (b"GET /", b"a" * 1000),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"a: b\r\n" * 100,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: ", b"b" * 1000),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;", b"b" * 1000),
    ],
)
def test_headers_and_trailers_without_end_are_refused(start, more):
    async def test() -> None:
        made, wire = connect()
        made.data_received(start)
        count = 0
        while not wire.closed and count <= MAX_HEAD_BYTES:
            made.data_received(more)
            count += len(more)
        assert b"HTTP/1.1 431" in wire.sent
        assert b"application/problem+json" in wire.sent

    run(test)


def test_headers_in_one_piece_are_counted_without_their_body():
    async def test() -> None:
        size = MAX_HEAD_BYTES - 100
        for extra, status in ((0, 200), (200, 431)):
            made, wire = connect()
            head = b"POST / HTTP/1.1\r\nHost: x\r\na: %s\r\nContent-Length: 90000\r\n\r\n"
            made.data_received(head % (b"b" * (size + extra)) + bytes(90_000))
            await turns()
            assert wire.status == status
            assert wire.closed == (status == 431)

    run(test)


def test_what_follows_a_chunked_body_becomes_no_header():
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        seen.append(scope["headers"])
        await answer(scope, receive, send)

    async def test() -> None:
        made, wire = connect(app)
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        made.data_received(head + b"1\r\na\r\n0\r\nauthorization: Bearer x\r\n\r\n")
        await turns()
        assert seen == [[(b"host", b"x"), (b"transfer-encoding", b"chunked")]]
        made.data_received(GET)
        await turns()
        assert wire.sent.count(b"200 OK") == 2

    run(test)


def test_who_says_nothing_or_speaks_slowly_is_not_waited_for(monkeypatch):
    async def test() -> None:
        clock = Clock(asyncio.get_running_loop(), monkeypatch)
        _, silent = connect()
        slow, slow_wire = connect()
        for byte in GET[:15]:
            slow.data_received(bytes([byte]))
            clock.pass_s(1)
        assert silent.closed
        assert silent.sent == b""
        clock.pass_s(5)
        assert slow_wire.closed
        assert slow_wire.status == 408

    run(test)


def test_idle_connections_are_kept_and_slow_headers_after_an_answer_are_not(monkeypatch):
    async def test() -> None:
        clock = Clock(asyncio.get_running_loop(), monkeypatch)
        idle, idle_wire = connect()
        slow, slow_wire = connect()
        for one in (idle, slow):
            one.data_received(GET)
        await turns()
        clock.pass_s(70)
        assert not idle_wire.closed
        slow.data_received(GET[:5])
        clock.pass_s(4)
        assert not slow_wire.closed
        clock.pass_s(16)
        assert b"HTTP/1.1 408" in slow_wire.sent
        assert slow_wire.closed
        assert idle_wire.closed
        assert b"408" not in idle_wire.sent

    run(test)


def test_a_body_that_was_answered_early_does_not_flow_on(monkeypatch):
    async def test() -> None:
        clock = Clock(asyncio.get_running_loop(), monkeypatch)
        made, wire = connect()
        made.data_received(POST % 10**9 + bytes(1000))
        for _ in range(30):
            await turns()
            if not wire.closed:
                made.data_received(bytes(1000))
            clock.pass_s(1)
        assert wire.status == 200
        assert b"connection: close" in wire.sent
        assert wire.ended  # so that it reads its answer, and no reset
        assert wire.closed

    run(test)


def test_who_takes_nothing_of_an_answer_is_cut_off_and_who_takes_it_slowly_is_not(monkeypatch):
    async def test() -> None:
        clock = Clock(asyncio.get_running_loop(), monkeypatch)
        stuck, stuck_wire = connect()
        slow, slow_wire = connect()
        for one in (stuck, slow):
            one.data_received(GET)
        await turns()
        stuck_wire.unsent = slow_wire.unsent = 10**6
        for _ in range(100):
            slow_wire.unsent -= 1000
            clock.pass_s(1)
        assert stuck_wire.aborted
        assert not slow_wire.closed

    run(test)


def test_an_application_may_take_its_time(monkeypatch):
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(scope, receive, send)

    async def test() -> None:
        clock = Clock(asyncio.get_running_loop(), monkeypatch)
        made, wire = connect(app)
        made.data_received(GET)
        await turns()
        clock.pass_s(1000)
        assert not wire.closed
        go.set()
        await turns()
        assert wire.status == 200

    run(test)


def test_more_connections_than_there_is_room_for_are_refused(monkeypatch):
    infinite = connection.resource.RLIM_INFINITY
    for descriptors, most in ((infinite, 16_384), (2**40, 16_384), (1024, 896), (1, 1), (4, 3)):
        monkeypatch.setattr(connection.resource, "getrlimit", lambda _, n=descriptors: (n, n))
        assert connection_limit() == most

    async def test() -> None:
        state = ServerState()
        made, wires = zip(*[connect(state=state) for _ in range(4)], strict=True)
        assert [wire.closed for wire in wires] == [False, False, False, True]
        assert wires[-1].status == 503
        assert b"retry-after" in wires[-1].sent
        for one in made:
            one.connection_lost(None)
        assert not connect(state=state)[1].closed

    run(test)


def answer_after(go: asyncio.Event) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(scope, receive, send)

    return app


def test_requests_do_not_queue_up_on_a_connection_without_end():
    async def test() -> None:
        go = asyncio.Event()
        made, wire = connect(answer_after(go))
        made.data_received(GET * MAX_PIPELINED)
        made.data_received(GET * 20)
        assert not wire.sent
        go.set()
        await turns(200)
        assert wire.closed
        assert statuses(wire) == [200] * (MAX_PIPELINED + 1) + [429]
        assert b"retry-after: 1" in wire.sent

    run(test)


def statuses(wire: Wire) -> list[int]:
    return [int(one[:3]) for one in wire.sent.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "second",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\na: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
)
@pytest.mark.parametrize("ends", [True, False])
def test_a_refusal_waits_for_the_answers_before_it(second, ends):
    async def test() -> None:
        go = asyncio.Event()
        made, wire = connect(answer_after(go))
        made.data_received(GET + second)
        made.data_received(b"b" * (MAX_HEAD_BYTES + 1))
        if ends:
            assert made.eof_received()
        await turns()
        assert not wire.sent
        assert not wire.closed
        go.set()
        await turns()
        assert wire.sent.startswith(b"HTTP/1.1 200")
        assert statuses(wire)[1:] in ([400], [431])
        assert wire.closed

    run(test)


def test_what_is_wrong_in_a_body_is_the_answer_to_its_request():
    async def test() -> None:
        made, wire = connect(echo)
        made.data_received(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
        )
        await turns()
        assert statuses(wire) == [400]
        assert wire.closed
        made.connection_lost(None)
        await turns()

    run(test)


def test_a_body_comes_in_large_pieces_and_no_more_is_held_than_one():
    pieces, go = [], asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            pieces.append(len(message["body"]))
            more = message["more_body"]
            if len(pieces) == 1:
                await go.wait()
        await answer(scope, receive, send)

    async def test() -> None:
        made, wire = connect(app)
        made.data_received(POST % 300_000 + bytes(READ_AHEAD - 1))
        await turns()
        assert pieces == []
        made.data_received(b"x")
        await turns()
        assert pieces == [READ_AHEAD]
        made.data_received(bytes(READ_AHEAD))
        assert wire.paused  # nobody reads on
        go.set()
        await turns()
        assert not wire.paused
        made.data_received(bytes(300_000 - 2 * READ_AHEAD))
        await turns()
        assert wire.status == 200
        assert sum(pieces) == 300_000

    run(test)


def test_an_answered_request_leaves_nothing_for_the_collector():
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(weakref.ref(receive.__self__))
        await answer(scope, receive, send)

    async def test() -> None:
        made, wire = connect(app)
        for _ in range(2):
            made.data_received(GET)
            await turns()
        assert wire.sent.count(b"200 OK") == 2
        assert seen[0]() is None

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await answer(scope, receive, send, b"%b %b" % (scope["method"].encode(), body))


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
LENGTH = b"Content-Length: 5\r\n\r\nabcde"
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    "two": b"Upgrade: h2c\r\nUpgrade: TLS/1.0\r\nConnection: upgrade\r\n",
}


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
@pytest.mark.parametrize("framed", [LENGTH, CHUNKED])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_an_offer_to_upgrade_is_ignored_and_the_body_belongs_to_the_request(offer, framed, size):
    """Between two other requests, in packets of any size."""

    async def test() -> None:
        made, wire = connect(echo)
        data = (
            POST % 3
            + b"one"
            + b"PUT / HTTP/1.1\r\nHost: x\r\n"
            + offer
            + framed
            + POST % 5
            + b"three"
            + GET
        )
        for at in range(0, len(data), size):
            made.data_received(data[at : at + size])
            await turns(2)
        await turns(20)
        said = [b"POST one", b"PUT abcde", b"POST three", b"GET "]
        places = [wire.sent.index(text) for text in said]
        assert places == sorted(places)
        assert wire.sent.count(b"HTTP/1.1 200") == 4
        assert not wire.closed

    run(test)


def test_connect_is_refused_once_behind_what_came_before():
    """The parser takes what follows it for another protocol, and nobody offered that."""

    async def test() -> None:
        made, wire = connect(echo)
        made.data_received(GET + b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        await turns(50)
        assert statuses(wire) == [200, 405]
        assert b"allow: GET" in wire.sent
        assert wire.closed

    run(test)


def test_an_answer_of_unknown_length_ends_with_its_connection():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece, more in ((b"a", True), (b"b", False)):
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def test() -> None:
        made, wire = connect(app)
        made.data_received(GET)
        await turns()
        assert b"connection: close" in wire.sent
        assert wire.sent.endswith(b"\r\n\r\nab")
        assert wire.closed

    run(test)


def test_when_the_server_stops_kept_connections_get_one_more_answer(monkeypatch):
    async def test() -> None:
        clock = Clock(asyncio.get_running_loop(), monkeypatch)
        (idle, idle_wire), (busy, busy_wire) = connect(), connect()
        for one in (idle, busy):
            one.data_received(GET)
            await turns()
            one.shutdown()
        assert not idle_wire.closed  # a request may be on its way
        busy.data_received(GET)
        await turns()
        assert busy_wire.sent.count(b"200 OK") == 2
        assert busy_wire.sent.count(b"connection: close") == 1
        assert busy_wire.closed
        clock.pass_s(1)
        assert idle_wire.closed

    run(test)


def test_an_application_that_fails_leaves_no_half_of_an_answer(caplog):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("of the application")

    async def test() -> None:
        made, wire = connect(app)
        made.data_received(GET)
        await turns()
        assert wire.aborted
        assert wire.sent == b""

    run(test)


def test_no_second_answer_follows_a_whole_one_that_nobody_took():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(0.01):
                await answer(scope, receive, send)
        except TimeoutError:
            await answer(scope, receive, send, b"an error")

    async def test() -> None:
        made, wire = connect(app)
        made.pause_writing()
        made.data_received(GET)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        assert statuses(wire) == [200]
        assert wire.aborted

    run(test)


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://there:8000", "/"), (b"http://there:8000/budgets", "/budgets")]
)
def test_a_target_in_absolute_form_has_a_path(target, path):
    async def test() -> None:
        asked = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            asked.append((scope["path"], scope["raw_path"].decode()))
            await answer(scope, receive, send)

        made, wire = connect(app)
        made.data_received(GET.replace(b"/", target, 1))
        await turns()
        assert wire.status == 200
        assert asked == [(path, path)]

    run(test)


@pytest.mark.parametrize(("version", "sent"), [(b"1.1", True), (b"1.0", False)])
def test_http_1_0_gets_no_100_continue(version, sent):
    async def test() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await answer(scope, receive, send)

        made, wire = connect(app)
        head = (POST % 2).replace(b"1.1", version)
        made.data_received(head.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue"))
        await turns()
        made.data_received(b"ab")
        await turns()
        assert (b"100 Continue" in wire.sent) == sent
        assert b"200 OK" in wire.sent

    run(test)


BODY = b"\r\n\r\n1\r\na\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET http://x/ HTTP/1.1\r\nHost:\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked" + BODY, 200),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked" + BODY, 400),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n"
            b"Transfer-Encoding: chunked" + BODY,
            400,
        ),
    ],
)
def test_a_head_that_others_may_understand_differently_is_refused(sent, status):
    async def test() -> None:
        made, wire = connect(echo)
        made.data_received(sent)
        await turns()
        assert statuses(wire) == [status]
        made.connection_lost(None)

    run(test)
