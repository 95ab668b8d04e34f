"""Bodies and the room for them: a request made by hand, no server."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope

from shiftnas_serve.http import body as bodies
from shiftnas_serve.http.body import decode_base64, read_body, read_image
from shiftnas_serve.http.options import read_budgets
from shiftnas_serve.problem import CLIENT_GONE, Problem
from shiftnas_serve.scheduling.room import Room, Share
from shiftnas_serve.settings import Settings

LIMITS = Settings(max_body_bytes=1000, timeout_s=5.0)
LARGE = Settings(max_body_bytes=10**7, timeout_s=10.0)


def request(pieces: Sequence[bytes], **headers: str) -> tuple[Scope, Receive]:
    """One whose body comes in these pieces; after them its client waits."""
    left = list(pieces)

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    names = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    scope = {"type": "http", "headers": list(names.items())}
    return {**scope, "state": {"headers": names}}, receive


def read(pieces: Sequence[bytes], share: Share, **headers: str) -> bytes:
    return asyncio.run(read_body(*request(pieces, **headers), share, LIMITS))


def image_of(body: bytes, content_type: str) -> bytes:
    with ThreadPoolExecutor(1) as threads, Room(9, 10**8).share() as share:
        asked = request([body], content_type=content_type)
        return asyncio.run(read_image(*asked, share, LARGE, threads))


def test_bodies_share_a_room_take_it_as_they_come_and_give_it_back():
    room = Room(9, 1500)
    with room.share() as first:
        assert len(read([bytes(600), bytes(400)], first, content_length="1000")) == 1000
        assert room.size_bytes == 1000
        with pytest.raises(Problem, match="try again") as refused, room.share() as second:
            read([bytes(400), bytes(400)], second)
        assert refused.value.status == 429
        assert "Retry-After" in refused.value.headers
        with room.share() as second:
            assert len(read([bytes(500)], second, content_length="1000")) == 500
    assert room.size_bytes == 0


def test_images_have_room_one_by_one():
    room = Room(3, 10)
    with room.share() as two, room.share() as more:
        two.add(2)
        with pytest.raises(Problem, match="2 images are being worked on") as refused:
            more.add(2)
        assert refused.value.status == 429
        more.add(1)
        with pytest.raises(Problem, match="3 or fewer") as never:
            more.add(4)
        assert never.value.status == 400
        assert room.images == 3
    assert room.images == 0


def test_what_never_has_room_is_not_asked_for_again():
    with Room(9, 1500).share() as share:
        share.grow(1000)
        with pytest.raises(Problem, match=r"^1,600 bytes at once; send 1,500 \(max_wa") as refused:
            share.grow(600)
    assert refused.value.status == 413
    assert not refused.value.headers


def test_what_is_refused_for_its_length_or_coding_takes_no_room_and_is_not_read():
    room = Room(9, 10**6)
    for pieces, headers, wanted in (
        ([], {"content_length": "1001"}, 413),
        ([bytes(600), bytes(600)], {}, 413),
        ([], {"content_length": "9" * 5000}, 400),
        ([], {"content_length": "-1"}, 400),
        ([], {"content_encoding": "gzip"}, 415),
    ):
        with pytest.raises(Problem) as refused, room.share() as share:
            read(pieces, share, **headers)
        assert refused.value.status == wanted
        assert room.size_bytes == 0


def test_every_coding_that_is_named_counts_in_any_letters():
    scope, receive = request([b"photo"], content_encoding="Identity")
    with Room(9, 10**6).share() as share:
        assert asyncio.run(read_body(scope, receive, share, LIMITS)) == b"photo"
        scope["headers"].append((b"content-encoding", b"gzip"))
        with pytest.raises(Problem, match="gzip") as refused:
            asyncio.run(read_body(scope, receive, share, LIMITS))
    assert refused.value.status == 415


@pytest.mark.parametrize("named", [b"FLOPs-Budget", b"x, latency-budget ,y"])
def test_a_budget_that_is_to_come_behind_the_body_is_refused(named):
    with pytest.raises(Problem, match="behind a body"):
        read_budgets([(b"trailer", named)])
    assert read_budgets([(b"trailer", b"Expires"), (b"flops-budget", b"4M")]) == {"flops": 4e6}


def test_a_body_of_one_piece_is_not_copied():
    piece = bytes(1000)
    assert read([piece], Room(1, 1000).share()) is piece


def test_a_client_that_leaves_before_its_body_is_whole_has_gone_and_made_no_mistake():
    messages: list[Message] = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    scope, _ = request([])
    with Room(9, 1000).share() as share, pytest.raises(Problem) as gone:
        asyncio.run(read_body(scope, receive, share, LIMITS))
    assert gone.value.status == CLIENT_GONE


FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n--b--\r\n'


@pytest.mark.parametrize("size", [1_000, 400_000, 2_000_000])
@pytest.mark.parametrize("form", [True, False])
def test_long_forms_and_json_are_read_in_a_thread(monkeypatch, size: int, form: bool):
    where: list[Any] = []
    image = bytes(range(256)) * (size // 256)
    name = "_from_form" if form else "_from_json"
    read_it = getattr(bodies, name)

    def noted(*given: Any) -> Any:
        where.append(threading.current_thread())
        return read_it(*given)

    monkeypatch.setattr(bodies, name, noted)
    body = FORM % image if form else json.dumps({"image": base64.b64encode(image).decode()})
    body = body.encode() if isinstance(body, str) else body
    kind = "multipart/form-data; boundary=b" if form else "application/json"
    assert image_of(body, kind) == image
    assert (where == [threading.main_thread()]) == (len(body) <= 262_144)


def test_a_long_form_is_read_in_memory(monkeypatch):
    """The server needs no folder for temporary files."""

    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError("a file was written")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    image = bytes(3_000_000)
    assert image_of(FORM % image, "multipart/form-data; boundary=b") == image


def test_a_long_malformed_form_is_a_problem_in_a_thread_too():
    with pytest.raises(Problem) as refused:
        image_of(b"-" * 400_000, "multipart/form-data; boundary=b")
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        (b"", b"", "multipart/form-data", "names no boundary"),
        (b"--b--", b"", "multipart/form-data; boundary=b", "is cut off: no closing boundary"),
        (b"--b--", b"--b", "multipart/form-data; boundary=b", "is cut off: no closing boundary"),
        (FORM % b"abc", b"--b--\r\n", "multipart/form-data; boundary=b", 'no field "image"'),
        (b"filename=", b"filename*=UTF-8''", "multipart/form-data; boundary=b", "has no filename"),
        (b"--b", b"no", "multipart/form-data; boundary=b", "malformed multipart form"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(old, new, kind, says):
    body = FORM % b"abc"
    assert old in body
    with pytest.raises(Problem, match=says) as refused:
        image_of(body.replace(old, new, 1), kind)
    assert refused.value.status == 400


def test_what_is_no_base64_is_refused():
    plain = base64.b64encode(bytes(range(256)) + b"ab").decode()
    for text in ("***", "data:image/png,abc", "data:base64", "a", plain + "=a", "\u00e9"):
        with pytest.raises(Problem, match="base64"):
            decode_base64(text)
