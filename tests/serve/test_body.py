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
from starlette.requests import Request
from starlette.types import Message, Scope

from shiftnas_serve import body as bodies
from shiftnas_serve.body import BodyLimits, BodyRoom, BodyShare, read_body, read_image
from shiftnas_serve.connection import READ_AHEAD
from shiftnas_serve.problem import Problem

LIMITS = BodyLimits(max_bytes=1000, timeout_s=5.0)


def request(pieces: Sequence[bytes], **headers: str) -> Request:
    """One whose body comes in these pieces; after them its client waits."""
    left = list(pieces)

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    names = {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in names.items()]}
    return Request({**scope, "state": {"headers": names}}, receive)


def read(pieces: Sequence[bytes], share: BodyShare | None = None, **headers: str) -> bytes:
    return asyncio.run(read_body(request(pieces, **headers), LIMITS, share))


def status(refused: pytest.ExceptionInfo[Problem]) -> int:
    return refused.value.status


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_share_a_room_and_give_it_back(announced):
    room = BodyRoom(1500)
    headers = {"content_length": "1000"} if announced else {}
    with BodyShare(room) as first:
        assert len(read([bytes(600), bytes(400)], first, **headers)) == 1000
        assert room.taken_bytes == 1000
        with pytest.raises(Problem, match="try again") as refused, BodyShare(room) as second:
            read([bytes(600), bytes(400)], second, **headers)
        assert status(refused) == 429
        assert "Retry-After" in refused.value.headers
        assert room.taken_bytes == 1000
        with BodyShare(room) as second:
            assert len(read([bytes(500)], second)) == 500
    assert room.taken_bytes == 0


def test_what_is_refused_for_its_length_takes_no_room_and_is_not_read():
    room = BodyRoom(10**6)
    for pieces, headers, wanted in (
        ([], {"content_length": "1001"}, 413),
        ([bytes(600), bytes(600)], {}, 413),
        ([], {"content_length": "9" * 5000}, 400),
        ([], {"content_length": "-1"}, 400),
    ):
        with pytest.raises(Problem) as refused, BodyShare(room) as share:
            read(pieces, share, **headers)
        assert status(refused) == wanted
        assert room.taken_bytes == 0


def test_a_body_that_does_not_come_is_408():
    slow = BodyLimits(max_bytes=1000, timeout_s=0.01)
    with pytest.raises(Problem) as refused:
        asyncio.run(read_body(request([], content_length="5"), slow))
    assert status(refused) == 408


def test_the_connection_is_told_what_there_is_room_for_and_no_more():
    told = []

    def read_ahead(scope: Scope, size: int) -> bool:
        told.append((size, room.taken_bytes))
        return True

    room = BodyRoom(500)
    for size in (400, 400):
        asked = request([bytes(size)], content_length=str(size))
        asked.scope["extensions"] = {READ_AHEAD: read_ahead}
        share = BodyShare(room)
        if not told:
            assert len(asyncio.run(read_body(asked, LIMITS, share))) == 400
        else:
            with pytest.raises(Problem, match="try again"):
                asyncio.run(read_body(asked, LIMITS, share))
    assert told == [(400, 400)]


def test_a_body_of_one_piece_is_not_copied():
    piece = bytes(1000)
    assert read([piece]) is piece


FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n--b--\r\n'


@pytest.mark.parametrize("size", [1_000, 400_000, 2_000_000])
@pytest.mark.parametrize("form", [True, False])
def test_long_forms_and_json_are_read_in_a_thread(monkeypatch, size: int, form: bool):
    where: list[Any] = []
    image = bytes(range(256)) * (size // 256)
    body = FORM % image if form else json.dumps({"image": base64.b64encode(image).decode()})
    if isinstance(body, str):
        body = body.encode()
        loads = json.loads

        def noted(text: bytes) -> Any:
            where.append(threading.current_thread())
            return loads(text)

        monkeypatch.setattr(bodies.json, "loads", noted)
    else:
        from_form = bodies._from_form

        async def noted_form(*given: Any) -> bytes:
            where.append(threading.current_thread())
            return await from_form(*given)

        monkeypatch.setattr(bodies, "_from_form", noted_form)
    kind = "multipart/form-data; boundary=b" if form else "application/json"
    with ThreadPoolExecutor(1) as threads:
        asked = request([body], content_type=kind)
        limits = BodyLimits(10**7, 10.0)
        assert asyncio.run(read_image(asked, limits, BodyShare(), threads)) == image
    assert (where == [threading.main_thread()]) == (len(body) <= 262_144)


def test_a_long_malformed_form_is_a_problem_in_a_thread_too():
    asked = request([b"-" * 400_000], content_type="multipart/form-data; boundary=b")
    with ThreadPoolExecutor(1) as threads, pytest.raises(Problem) as refused:
        asyncio.run(read_image(asked, BodyLimits(10**7, 10.0), BodyShare(), threads))
    assert status(refused) == 400
