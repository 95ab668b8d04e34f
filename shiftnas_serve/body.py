"""Body: the image bytes of a request, in any of the forms it may be sent in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Scope

from shiftnas_serve.connection import READ_AHEAD
from shiftnas_serve.problem import Problem
from shiftnas_serve.request_context import headers_of

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
ACCEPTED = (*RAW_TYPES, "multipart/form-data", "application/json")
# To read this much JSON or form takes milliseconds, in which nobody else would be answered.
_SMALL_BYTES = 262_144

T = TypeVar("T")


class BodyRoom:
    """How many bytes of bodies are here at once, of requests that are not answered yet."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self.taken_bytes = limit_bytes, 0

    def take(self, size_bytes: int) -> None:
        """Raises Problem 429 where there is no room for so many more."""
        if self.taken_bytes + size_bytes > self._limit:
            raise Problem(
                429,
                f"bodies of {self.taken_bytes:,} bytes are being worked on already; try again",
                headers={"Retry-After": "1"},
            )
        self.taken_bytes += size_bytes


class BodyShare:
    """What one request has of the room, given back at its end."""

    def __init__(self, room: BodyRoom | None = None) -> None:
        self._room, self.size_bytes = room, 0

    def grow(self, size_bytes: int) -> None:
        """To so many bytes. Raises Problem 429."""
        if size_bytes > self.size_bytes:
            if self._room is not None:
                self._room.take(size_bytes - self.size_bytes)
            self.size_bytes = size_bytes

    def give_back(self) -> None:
        """At the end."""
        if self._room is not None:
            self._room.taken_bytes -= self.size_bytes
            self.size_bytes = 0

    def __enter__(self) -> BodyShare:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()


@dataclass(frozen=True)
class BodyLimits:
    """Of one body."""

    max_bytes: int
    timeout_s: float


async def read_image(
    request: Request, limits: BodyLimits, share: BodyShare, threads: Executor
) -> bytes:
    """The encoded image. Raises Problem: 400 malformed or empty, 415 other types; ``read_body``'s.

    Raw, as the field ``image`` of a multipart form, or base64 in JSON ``{"image": ...}``. A raw
    body's content decides its format, not its content type, which may be missing.
    """
    given = headers_of(request).get("content-type", "").partition(";")[0].strip().lower()
    # `curl -T photo.jpg` names no type at all; the content says what it is.
    media_type = given or "application/octet-stream"
    if media_type not in ACCEPTED:
        detail = f"{media_type[:60]} is not accepted; send one of {', '.join(ACCEPTED)}"
        if media_type == "application/x-www-form-urlencoded":
            detail += " (curl --data-binary needs -H 'Content-Type: image/jpeg')"
        raise Problem(
            415,
            detail,
            headers={"Accept": ", ".join(ACCEPTED), "Accept-Post": ", ".join(ACCEPTED)},
        )
    body = await read_body(request, limits, share)
    if media_type == "application/json":
        return await in_turn(len(body), partial(_from_json, body), threads)
    if media_type == "multipart/form-data":
        # (a loop of its own in the thread: the form is read by a coroutine that never waits)
        if len(body) <= _SMALL_BYTES:
            return await _from_form(request.scope, body)
        return await in_turn(
            len(body), lambda: asyncio.run(_from_form(request.scope, body)), threads
        )
    if not body:
        raise Problem(400, "the body is empty; send the bytes of an image")
    return body


async def in_turn(size_bytes: int, read: Callable[[], T], threads: Executor) -> T:
    """``read()``, of so many bytes: in a thread unless it takes but a moment."""
    if size_bytes <= _SMALL_BYTES:
        return read()
    return await asyncio.get_running_loop().run_in_executor(threads, read)


async def read_body(request: Request, limits: BodyLimits, share: BodyShare | None = None) -> bytes:
    """The body as it is. Raises Problem: 400 the client went away, 408 too slow, 413 too long.

    ``share`` grows by it first: 429 where there is no room.
    """
    share = BodyShare() if share is None else share
    length = headers_of(request).get("content-length", "0")
    if not (length.isascii() and length.isdecimal() and len(length) <= 20):
        raise Problem(400, f"Content-Length: {length!r:.40} is not a number")
    size = int(length)
    if size > limits.max_bytes:
        raise Problem(413, f"the body is larger than {limits.max_bytes:,} bytes")
    share.grow(size)
    read_ahead = request.scope.get("extensions", {}).get(READ_AHEAD)
    if size and read_ahead is not None and read_ahead(request.scope, size):
        return await _pieces(request, limits.max_bytes, share)  # all is here
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _pieces(request, limits.max_bytes, share)
    except TimeoutError:
        raise Problem(408, f"no complete body came in {limits.timeout_s:g} s") from None


async def _pieces(request: Request, max_bytes: int, share: BodyShare) -> bytes:
    chunks: list[bytes] = []
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "the client went away before the body was complete")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > max_bytes:
            raise Problem(413, f"the body is larger than {max_bytes:,} bytes")
        share.grow(received)
        chunks.append(chunk)
    return b"".join(chunks)  # of one piece itself


def _from_json(body: bytes) -> bytes:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, 'the body is no JSON; send {"image": "<base64>"}') from None
    text = document.get("image") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise Problem(400, 'JSON must be an object with a text field: {"image": "<base64>"}')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, "image is not valid base64") from None


async def _from_form(scope: Scope, body: bytes) -> bytes:
    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(scope, replay).form(max_files=4, max_fields=16)
    except (MultiPartException, HTTPException, ValueError, KeyError) as error:
        detail = getattr(error, "detail", None) or str(error) or "no boundary"
        raise Problem(400, f"malformed multipart form: {detail}") from None
    try:
        field = form.get("image")
        if not isinstance(field, UploadFile):
            raise Problem(400, 'the form has no file field "image"')
        return await field.read()
    finally:
        await form.close()
