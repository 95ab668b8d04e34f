"""Any bytes in bodies and headers: an answer below 500, and the server as well as before."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.conftest import RunningServer, encoded, picture, start_server, stop_server

KINDS = ("PNG", "JPEG", "WEBP")
PHOTOS = [encoded(picture(24), kind) for kind in KINDS]
TYPES = (
    "image/png",
    "image/jpeg",
    "image/webp",
    "application/octet-stream",
    "application/json",
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    "text/plain",
    "",
)
fuzz = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def fuzzed(bundle_folder: Path) -> Iterator[RunningServer]:
    running = start_server(bundle_folder, "--max-body-bytes", "200000")
    yield running
    assert running.client.post("/classify", content=PHOTOS[0]).status_code == 200
    assert "Traceback" not in running.said()
    stop_server(running)


@st.composite
def damaged_photos(draw: st.DrawFn) -> bytes:
    """Photos cut short, with bytes changed, with bytes in between."""
    data = bytearray(draw(st.sampled_from(PHOTOS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "change", "insert"])):
            case "cut":
                data = data[: max(at, 1)]
            case "change" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case _:
                data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


def as_form(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
bodies = st.one_of(
    st.sampled_from(PHOTOS),
    damaged_photos(),
    damaged_photos().map(as_form),
    st.binary(max_size=300),
    st.binary(max_size=100).map(as_form),
    json_values.map(lambda value: json.dumps(value).encode()),
    json_values.map(lambda value: json.dumps({"image": value}).encode()),
)
# What the client itself lets through: no control characters, no blanks at the ends.
header_bytes = [*range(32, 127), *range(161, 256)]
header_text = st.text(st.sampled_from([chr(b) for b in header_bytes]), max_size=50).map(str.strip)
budgets = st.one_of(header_text, st.floats().map(str), st.integers().map(str), st.just("1M"))
headers = st.fixed_dictionaries(
    {"Content-Type": st.sampled_from(TYPES)},
    optional={
        "FLOPs-Budget": budgets,
        "Latency-Budget": budgets,
        "Request-Id": header_text,
        "Authorization": header_text,
        "Traceparent": header_text,
        "Accept-Encoding": header_text,
    },
)
queries = st.one_of(st.just({}), st.fixed_dictionaries({"top_k": header_text}))


def assert_sound(response: httpx.Response) -> None:
    # A budget of some microseconds is honest work to refuse too late.
    assert response.status_code < 500 or response.status_code == 504, response.text
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json"
    response.json()


def check_bodies_and_headers(server: RunningServer, body, fields, query) -> None:
    encoded_fields = [(name.encode(), text.encode("latin-1")) for name, text in fields.items()]
    assert_sound(
        server.client.post("/classify", content=body, headers=encoded_fields, params=query)
    )


@settings(fuzz, max_examples=200)
@given(bodies, headers, queries)
def test_any_body_and_header_gets_an_honest_answer(fuzzed, body, fields, query):
    check_bodies_and_headers(fuzzed, body, fields, query)


def resident_bytes(server: RunningServer) -> int:
    """Memory of all its processes (proportional set sizes)."""
    total = 0
    for pid in (server.process.pid, *server.descendants()):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(1024 * int(x.split()[1]) for x in lines if x.startswith("Pss:"))
    return total


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_bodies_and_headers_get_honest_answers_and_no_memory(fuzzed):
    """What caches may hold is there after the first two thousand."""

    def send(count: int) -> None:
        @settings(fuzz, max_examples=count)
        @given(bodies, headers, queries)
        def fuzz_it(body, fields, query):
            check_bodies_and_headers(fuzzed, body, fields, query)

        fuzz_it()

    send(2_000)
    before = resident_bytes(fuzzed)
    send(8_000)
    assert resident_bytes(fuzzed) < before + 10_000_000


@settings(fuzz, max_examples=60)
@given(
    st.lists(st.binary(max_size=80), max_size=5),
    st.sampled_from([b"POST /classify HTTP/1.1\r\nHost: x\r\n", b"GET /budgets HTTP/1.1\r\n", b""]),
)
def test_any_bytes_on_the_wire_end_in_an_answer_or_a_closed_connection(fuzzed, parts, start):
    address = ("127.0.0.1", int(fuzzed.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=10) as wire:
        wire.sendall(start + b"\r\n".join(parts) + b"\r\n\r\n")
        wire.shutdown(socket.SHUT_WR)
        answer = io.BytesIO()
        try:
            while data := wire.recv(4096):
                answer.write(data)
        except ConnectionResetError:
            pass
    first = answer.getvalue().partition(b"\r\n")[0]
    assert first == b"" or int(first.split()[1]) < 500, first
