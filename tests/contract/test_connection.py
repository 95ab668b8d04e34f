"""Connections of the default host: what is on the wire, and who takes room."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.parts.processes import processor_s
from tests.contract.process import Server, forget_peak, peak_bytes, serving, wait_for
from tests.contract.wire import Answer, Wire, chunked, request

PNG = "Content-Type: image/png"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def hasty(bundle_folder) -> Iterator[Server]:
    """One that waits for little."""
    with serving(bundle_folder, "--timeout-s", "1") as running:
        yield running


def exchange(server: Server, *parts: bytes, pause_s: float = 0.0) -> Answer:
    with Wire(server) as wire:
        for part in parts:
            wire.send(part)
            time.sleep(pause_s)
        answer = wire.answer()
        assert answer is not None
        return answer


@pytest.mark.parametrize("framed", ["length", "chunks"])
def test_an_upgrade_is_not_taken_and_the_body_is_the_requests(alone, png, framed):
    """As Java's HttpClient offers it, in packets as they come. What follows is the next request."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQA")
    if framed == "length":
        data = request(png, PNG, *offer)
    else:
        data = request(b"", PNG, CHUNKED, *offer) + chunked(png)
    with Wire(alone) as wire:
        for piece in (data[:40], data[40:500], data[500:] + request(method="GET", path="/livez")):
            wire.send(piece)
            time.sleep(0.02)
        answer, then = wire.answer(), wire.answer()
    assert answer is not None
    assert answer.status == 200, answer.body
    assert len(answer.json()["predictions"]) == 5
    assert then is not None
    assert then.json() == {"status": "alive"}


def test_who_sends_no_more_is_answered(alone, png):
    """All that it has sent whole, in order."""
    with Wire(alone) as wire:
        wire.send(request(png, PNG) + request(method="GET", path="/livez") + request(png, PNG))
        wire.end()
        for wanted in ("predictions", "status", "predictions"):
            answer = wire.answer()
            assert answer is not None
            assert answer.status == 200
            assert wanted in answer.json()
        assert wire.answer() is None


def test_who_sends_no_more_in_the_middle_of_a_body_is_gone(alone, png):
    with Wire(alone) as wire:
        wire.send(request(png, PNG)[:-10])
        wire.end()
        answer = wire.answer()
        assert answer is None or answer.status == 400
    assert alone.post(png).status_code == 200


def test_http_1_0_is_answered_and_closed(alone, png):
    answer = exchange(alone, request(png, PNG).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert answer.status == 200


@pytest.mark.parametrize(
    "early",
    [
        request(bytes(300_000), "Content-Type: text/plain"),
        request(bytes(300_000), PNG, path="/nothing"),
        request(bytes(300_000), PNG, "FLOPs-Budget: much"),
        request(bytes(300_000), PNG, method="DELETE"),
        request(bytes(300_000), "Content-Encoding: zstd", PNG),
        request(b"", "Content-Type: text/plain", CHUNKED) + chunked(bytes(50_000)),
        request(bytes(300), PNG, "Content-Length: 30000000"),
    ],
)
def test_an_answer_before_the_body_was_read_leaves_the_next_request_alone(alone, png, early):
    with Wire(alone) as wire:
        with contextlib.suppress(ConnectionError):  # refused, and closed while it is sent
            wire.send(early)
        answer = wire.answer()
        assert answer is not None
        assert 400 <= answer.status < 500
        with contextlib.suppress(ConnectionError):
            wire.send(request(png, PNG))
        then = wire.answer()
        if answer.closes:
            assert then is None
        else:
            assert then is not None
            assert then.status == 200, then.body


def test_expect_100_continue_is_answered_when_the_body_is_read(alone, png):
    with Wire(alone) as wire:
        wire.send(request(png, PNG, "Expect: 100-continue")[: -len(png)])
        assert wire.line().startswith(b"HTTP/1.1 100")
        assert wire.line() == b"\r\n"
        wire.send(png)
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 200
    refused = request(png, "Content-Type: text/plain", "Expect: 100-continue")[: -len(png)]
    assert exchange(alone, refused).status == 415


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\1\2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n%b\r\n\r\n0\r\n\r\n"
        % CHUNKED.encode(),
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET / HTTP/1.1\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(alone, sent):
    with Wire(alone) as wire:
        with contextlib.suppress(ConnectionError):
            wire.send(sent)
        answer = wire.answer()
        assert answer is None or (400 <= answer.status < 500 and answer.closes)
    assert alone.get("/livez").status_code == 200


# ------------------------------------------------------------------- who takes room, and how much


def many(server: Server, count: int, sent: bytes, stack: contextlib.ExitStack) -> list[Wire]:
    wires = [stack.enter_context(Wire(server)) for _ in range(count)]
    for wire in wires:
        wire.send(sent)
    return wires


@pytest.mark.parametrize(
    ("count", "length", "sent_bytes"), [(8, 20_000_000, 0), (200, 5000, 40), (8, 20_000_000, 1000)]
)
def test_who_only_announces_a_body_takes_nobodys_room(alone, png, count, length, sent_bytes):
    with contextlib.ExitStack() as stack:
        head = request(bytes(sent_bytes), PNG, f"Content-Length: {length}")
        many(alone, count, head, stack)
        wait_for(lambda: alone.get("/livez").status_code == 200)
        for _ in range(3):
            answer = alone.post(png)
            assert answer.status_code == 200, answer.text
    assert alone.post(png).status_code == 200


def test_a_body_that_does_not_come_is_408(hasty, png):
    with contextlib.ExitStack() as stack:
        wires = many(hasty, 3, request(b"slow", PNG, "Content-Length: 100"), stack)
        assert hasty.post(png).status_code == 200
        for wire in wires:
            answer = wire.answer()
            assert answer is not None
            assert answer.status == 408
            assert answer.closes


BOMBS = {  # of 20 MB, made when they are asked for
    "objects": lambda: b'{"x":[' + b"{}," * 6_600_000 + b"{}]}",
    "lists": lambda: b"[" * 19_900_000,
    "numbers": lambda: b'{"image":[' + b"0," * 9_900_000 + b"0]}",
    "keys": lambda: b"{" + b",".join(b'"%d":0' % n for n in range(1_700_000)) + b"}",
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("path", ["/classify", "/v2/models/test-nano-cnn/infer"])
def test_json_that_is_made_to_cost_costs_little(alone, png, kind, path):
    """Memory in units of what was sent; processor time, which others on this machine do not change,
    in units of what a good body of this length takes."""
    assert alone.post(png).status_code == 200
    bomb = BOMBS[kind]()
    pids = alone.pids()
    before, spent_s = forget_peak(pids), processor_s(list(pids))
    answer = alone.post(bomb, path, **{"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text[:300]
    assert peak_bytes(pids) - before < 4 * len(bomb)
    assert processor_s(list(pids)) - spent_s < 1.0


def test_four_bombs_at_once_stay_within_the_room_for_bodies(alone, png):
    pids, bomb = alone.pids(), BOMBS["objects"]()
    before = forget_peak(pids)
    with ThreadPoolExecutor(4) as pool:
        sent = {"Content-Type": "application/json"}
        bombs = [pool.submit(alone.post, bomb, **sent) for _ in range(4)]
        assert alone.get("/livez").status_code == 200
        assert {one.result().status_code for one in bombs} <= {400, 429}
    assert peak_bytes(pids) - before < 250_000_000
    assert alone.post(png).status_code == 200


def test_a_form_that_is_made_to_cost_costs_little(alone):
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
    bomb = part * (19_000_000 // len(part)) + b"--b--\r\n"
    pids = alone.pids()
    before = forget_peak(pids)
    answer = alone.post(bomb, **{"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400
    assert peak_bytes(pids) - before < 4 * len(bomb)


def test_connections_that_are_cut_leave_nothing(alone, png):
    for _ in range(50):
        with Wire(alone) as wire:
            wire.send(request(png, PNG)[: -len(png) // 2])
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    in_flight = "shiftnas_requests_in_flight 0.0"
    wait_for(lambda: in_flight in alone.get("/metrics").text)
    assert alone.post(png).status_code == 200
