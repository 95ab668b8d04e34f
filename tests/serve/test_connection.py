"""What a connection does with its requests and its time, without a server (``wire``)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from shiftnas_serve.http import connection
from shiftnas_serve.http.connection import (
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    READ_AHEAD,
    connection_limit,
)
from tests.serve.wire import GET, POST, Clock, answer, connect, echo, run, statuses, turns


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
