"""What stands above a body, and where the body ends, without a server (``wire``)."""

from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from shiftnas_serve.http.connection import (
    MAX_HEAD_BYTES,
)
from tests.serve.wire import GET, POST, answer, connect, echo, run, statuses, turns


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
