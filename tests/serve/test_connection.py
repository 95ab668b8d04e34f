"""One connection at a time, with a transport that only notes what is done to it: no server."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from shiftnas_serve.connection import (
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    READ_AHEAD,
    Connection,
    connection_limit,
)
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from shiftnas_serve import connection

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


class Wire:
    """The other end of a transport."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = self.aborted = self.paused = False
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

    def pause_reading(self) -> None:
        self.paused, self.pauses = True, self.pauses + 1

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str) -> None:
        return None

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


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def connect(app: Any = answer, state: ServerState | None = None) -> tuple[Connection, Wire]:
    config = Config(app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=75)
    made, wire = Connection(config, state or ServerState(), {}), Wire()
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
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 100),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: ", b"b" * 1000),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;", b"b" * 1000),
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
            head = b"POST / HTTP/1.1\r\na: %s\r\nContent-Length: 90000\r\n\r\n"
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
        head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        made.data_received(head + b"1\r\na\r\n0\r\nauthorization: Bearer x\r\n\r\n")
        await turns()
        assert seen == [[(b"transfer-encoding", b"chunked")]]
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
        assert wire.closed
        assert len(made.cycle.body) == 0

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
    assert connection_limit(1024) == 896
    assert connection_limit(20) == 10
    assert connection_limit(1) >= 1
    assert connection_limit(-1) == connection_limit(2**40) > 10_000
    monkeypatch.setattr(connection.resource, "getrlimit", lambda which: (4, 4))

    async def test() -> None:
        state = ServerState()
        made, wires = zip(*[connect(state=state) for _ in range(4)], strict=True)
        assert [wire.closed for wire in wires] == [False, False, True, True]
        assert wires[-1].status == 503
        assert b"Retry-After" in wires[-1].sent
        for one in made:
            one.connection_lost(None)
        assert not connect(state=state)[1].closed

    run(test)


def test_requests_do_not_queue_up_on_a_connection_without_end():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(3600)

    async def test() -> None:
        made, wire = connect(app)
        made.data_received(GET * MAX_PIPELINED)
        assert not wire.closed
        made.data_received(GET * 2)
        assert wire.closed
        assert wire.status == 429
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    run(test)


@pytest.mark.parametrize("asked", [0, 300_000])
def test_a_body_comes_whole_where_there_is_room_for_it_and_else_in_pieces(asked):
    pieces, here = [], []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if asked:
            here.append(scope["extensions"][READ_AHEAD](scope, asked))
        more = True
        while more:
            message = await receive()
            pieces.append(len(message["body"]))
            more = message["more_body"]
        await answer(scope, receive, send)

    async def test() -> None:
        made, wire = connect(app)
        made.data_received(POST % 300_000 + bytes(70_000))
        for _ in range(46):
            await turns()
            assert not (asked and wire.paused)
            made.data_received(bytes(5_000))
        await turns()
        assert wire.status == 200
        assert sum(pieces) == 300_000
        assert (len(pieces) == 1) == bool(asked)
        assert here == [False] * bool(asked)

    run(test)


def test_more_than_was_asked_for_is_held_back():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][READ_AHEAD](scope, 100_000)
        await asyncio.sleep(3600)

    async def test() -> None:
        made, wire = connect(app)
        made.data_received(POST % 300_000)
        await turns()
        made.data_received(bytes(100_000))
        assert not wire.paused
        made.data_received(b"x")
        assert wire.paused
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    run(test)


def test_an_answered_request_leaves_nothing_for_the_collector():
    async def test() -> None:
        made, wire = connect()
        made.data_received(GET)
        await turns()
        seen = weakref.ref(made.cycle)
        made.data_received(GET)
        await turns()
        assert wire.sent.count(b"200 OK") == 2
        assert seen() is None

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


def test_one_that_came_behind_is_not_read_ahead_for_another():
    here = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        here.append(scope["extensions"][READ_AHEAD](scope, 200_000))
        await asyncio.sleep(3600)

    async def test() -> None:
        made, wire = connect(app)
        made.data_received(POST % 5 + b"12345" + POST % 300_000)
        await turns()
        made.data_received(bytes(100_000))
        assert here == [False]
        assert wire.paused
        assert made.cycle.message_event.is_set()  # it is woken for 64 kB, as if nothing were asked
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    run(test)


def test_what_is_no_http_is_a_problem_and_upgrades_are_answered_as_if_they_had_not_been_asked():
    async def test() -> None:
        made, wire = connect()
        made.data_received(b"\0\1\2\r\n\r\n")
        assert wire.status == 400
        assert b"problem+json" in wire.sent
        assert wire.closed
        made, wire = connect()
        asked = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        made.data_received(GET[:-2] + asked)
        await turns()
        assert wire.status == 200

    run(test)
