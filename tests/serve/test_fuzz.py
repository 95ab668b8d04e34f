"""Any bytes in bodies, headers and paths: an answer below 500, and the server as well as before."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.process import Server, serving
from tests.pictures import encoded, picture

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
ADMIN_KEY = "fuzz"
INFER = "/v2/models/test-nano-cnn/infer"
fuzz = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def fuzzed(bundle_folder: Path) -> Iterator[Server]:
    options = ("--max-body-bytes", "200000")
    with serving(bundle_folder, *options, SHIFTNAS_ADMIN_KEYS=ADMIN_KEY) as running:
        yield running
        assert running.post(PHOTOS[0]).status_code == 200
        data = [base64.b64encode(PHOTOS[0]).decode()]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
        with running.client() as client:
            assert client.post(INFER, json={"inputs": [tensor]}).status_code == 200
        assert "Traceback" not in running.said()


@pytest.fixture(scope="module")
def client(fuzzed: Server) -> Iterator[httpx.Client]:
    with fuzzed.client() as one:
        yield one


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


# Halves of surrogate pairs as well, which JSON can hold and UTF-8 cannot.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | texts,
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


@dataclass
class Call:
    """What is asked of one route; some of it goes with its own headers."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def sometimes(sound: object) -> st.SearchStrategy[object]:
    return st.one_of(st.just(sound), json_values)


def tensors(image: bytes) -> st.SearchStrategy[dict[str, object]]:
    fields = {
        "name": sometimes("image"),
        "datatype": sometimes("BYTES"),
        "shape": sometimes([1]),
        "data": sometimes([base64.b64encode(image).decode()]),
    }
    return st.fixed_dictionaries(
        fields,
        optional={"parameters": sometimes({"binary_data_size": 4 + len(image)})},
    )


@st.composite
def infer_calls(draw: st.DrawFn) -> Call:
    image = draw(st.one_of(st.sampled_from(PHOTOS), damaged_photos()))
    document = draw(
        st.fixed_dictionaries(
            {"inputs": st.lists(tensors(image), min_size=1, max_size=2)},
            optional={
                "id": json_values,
                "parameters": sometimes({"flops_budget": "1M", "binary_data_output": True}),
                "outputs": sometimes([{"name": "probabilities"}]),
            },
        )
    )
    head = json.dumps(document).encode()
    body = draw(st.sampled_from([head, head + len(image).to_bytes(4, "little") + image]))
    path = draw(st.sampled_from([INFER, INFER.replace("/infer", "/versions/1/infer")]))
    lengths = st.one_of(st.just(str(len(head))), st.integers().map(str), st.just("9" * 4301))
    headers = draw(st.fixed_dictionaries({}, optional={"Inference-Header-Content-Length": lengths}))
    return Call("POST", path, body, headers)


def subnet_call(identity: str) -> Call:
    return Call("GET", f"/subnets/{quote(identity, safe='')}")


def reload_call(body: bytes) -> Call:
    return Call("POST", "/admin/reload", body, {"Authorization": f"Bearer {ADMIN_KEY}"})


reloads = st.one_of(json_values, st.fixed_dictionaries({"bundle": json_values}))
calls = st.one_of(
    bodies.map(lambda body: Call("POST", "/classify", body)),
    infer_calls(),
    header_text.map(subnet_call),
    reloads.map(lambda value: reload_call(json.dumps(value).encode())),
)
queries = st.fixed_dictionaries({}, optional={"top_k": header_text, "format": header_text})


def assert_sound(response: httpx.Response) -> None:
    # A budget of some microseconds is honest work to refuse too late.
    assert response.status_code < 500 or response.status_code == 504, response.text
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json"
    if "json" in response.headers["content-type"]:
        response.json()


def check(client: httpx.Client, call: Call, fields, query) -> None:
    given = [*{**fields, **call.headers}.items()]
    encoded_fields = [(name.encode(), text.encode("latin-1")) for name, text in given]
    assert_sound(
        client.request(
            call.method, call.path, content=call.body, headers=encoded_fields, params=query
        )
    )


@settings(fuzz, max_examples=200)
@given(calls, headers, queries)
def test_any_body_header_and_path_gets_an_honest_answer(client, call, fields, query):
    check(client, call, fields, query)


def resident_bytes(server: Server) -> int:
    """Memory of all its processes (proportional set sizes)."""
    total = 0
    for pid in server.pids():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(1024 * int(x.split()[1]) for x in lines if x.startswith("Pss:"))
    return total


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_bodies_and_headers_get_honest_answers_and_no_memory(fuzzed, client):
    """What caches may hold is there after the first two thousand."""

    def send(count: int) -> None:
        @settings(fuzz, max_examples=count)
        @given(calls, headers, queries)
        def fuzz_it(call, fields, query):
            check(client, call, fields, query)

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
    address = ("127.0.0.1", fuzzed.port)
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
