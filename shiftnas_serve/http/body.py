"""Body: the image bytes of a request, in any of the forms it may be sent in."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import msgspec
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header
from starlette.types import Receive, Scope

from shiftnas_serve.http.options import refuse_others
from shiftnas_serve.problem import CLIENT_GONE, Problem
from shiftnas_serve.scheduling.room import Share
from shiftnas_serve.settings import Settings

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
ACCEPTED = (*RAW_TYPES, "multipart/form-data", "application/json")
# What some clients call the same.
_ALIASES = ("image/jpg", "image/pjpeg", "image/x-png")
# To read or write this much takes milliseconds, in which nobody else would be answered.
_SMALL_BYTES = 262_144
_SEND_FORM = "let a library write it, as curl -F image=@photo.jpg does"
_STANDARD = bytes.maketrans(b"-_", b"+/")

T = TypeVar("T")


class ImageDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A body: the bytes of an image in a form, or base64 in JSON."""

    image: str


async def read_image(
    scope: Scope, receive: Receive, share: Share, settings: Settings, threads: Executor
) -> bytes:
    """The encoded image. Raises Problem: 400 malformed or empty, 415 other types; ``read_body``'s.

    Raw, as the one field ``image`` of a multipart form, or base64 in JSON ``{"image": ...}``. A raw
    body's content decides its format, not its content type, which may be missing.
    """
    headers = scope["state"]["headers"]
    media_type = accepted_type(headers)
    body = await read_body(scope, receive, share, settings)
    if media_type == "application/json":
        return await in_turn(len(body), partial(_from_json, body), threads)
    if media_type == "multipart/form-data":
        form = partial(_from_form, headers[b"content-type"], body)
        return await in_turn(len(body), form, threads)
    if not body:
        raise Problem(400, "the body is empty; send the bytes of an image")
    return body


def accepted_type(headers: Mapping[bytes, bytes]) -> str:
    """What kind of body it is. Raises Problem 415 for those that are not read."""
    given = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    # `curl -T photo.jpg` names no type at all; the content says what it is.
    media_type = given or "application/octet-stream"
    if media_type not in ACCEPTED and media_type not in _ALIASES:
        detail = f"{media_type[:60]} is not accepted; send one of {', '.join(ACCEPTED)}"
        if media_type == "application/x-www-form-urlencoded":
            detail += " (curl --data-binary needs -H 'Content-Type: image/jpeg')"
        accepted = ", ".join(ACCEPTED)
        raise Problem(415, detail, headers={"Accept": accepted, "Accept-Post": accepted})
    return media_type


async def in_turn(size_bytes: int, work: Callable[[], T], threads: Executor) -> T:
    """``work()``, on so many bytes: in a thread unless it takes but a moment."""
    if size_bytes <= _SMALL_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def read_body(scope: Scope, receive: Receive, share: Share, settings: Settings) -> bytes:
    """The body as it is, within the limits of ``settings``; ``share`` grows by what comes.

    Raises Problem: 408 slow, 413 long, 415 compressed, 429 no room, 499 the client went away.
    """
    headers = scope["state"]["headers"]
    codings = [value for name, value in scope["headers"] if name == b"content-encoding"]
    if any(coding.strip().lower() != b"identity" for coding in codings):
        shown = b", ".join(codings).decode("latin-1")
        raise Problem(
            415,
            f"Content-Encoding: {shown!r:.40} is not read; send the body as it is (images are "
            "compressed already)",
            headers={"Accept-Encoding": "identity"},
        )
    if announced_bytes(headers) > settings.max_body_bytes:
        raise _too_long(settings)
    if scope["state"].get("whole"):  # (``connection``) there is nothing to wait for
        return await _pieces(receive, share, settings)
    try:
        async with asyncio.timeout(settings.timeout_s):
            return await _pieces(receive, share, settings)
    except TimeoutError:
        raise Problem(408, f"no complete body came in {settings.timeout_s:g} s") from None


def announced_bytes(headers: Mapping[bytes, bytes]) -> int:
    """How long the body is, as far as its headers say. Raises Problem 400."""
    length = headers.get(b"content-length", b"0")
    if not (length.isdigit() and len(length) <= 20):
        shown = length.decode("latin-1")
        raise Problem(400, f"Content-Length: {shown!r:.40} is not a number")
    return int(length)


async def _pieces(receive: Receive, share: Share, settings: Settings) -> bytes:
    chunks: list[bytes] = []
    received, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(CLIENT_GONE, "the client went away before the body was complete")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > settings.max_body_bytes:
            raise _too_long(settings)
        share.grow(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)  # of one piece itself


def _too_long(settings: Settings) -> Problem:
    return Problem(413, f"the body is larger than {settings.max_body_bytes:,} bytes")


def _from_json(body: bytes) -> bytes:
    try:
        text = msgspec.json.decode(body, type=ImageDocument).image
    except msgspec.ValidationError as error:
        name = str(error).partition("unknown field `")[2].partition("`")[0]
        if name:
            refuse_others([name], ("image",), "the JSON object")
        raise Problem(
            400, f'JSON must be {{"image": "<base64>"}} and no more: {str(error)[:200]}'
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Problem(400, 'the body is not JSON; send {"image": "<base64>"}') from None
    if body.count(b'"') > 4:  # of which there are none in base64
        raise Problem(400, "the JSON object has image several times; send one a request")
    return decode_base64(text)


def decode_base64(text: str) -> bytes:
    """With line breaks, as a ``data:`` URL, and in the alphabet for URLs, too. Problem 400."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Problem(400, "image is a data: URL without ;base64,")
    try:
        coded = text.encode("ascii")
        try:
            return binascii.a2b_base64(coded, strict_mode=True)
        except binascii.Error:
            coded = coded.translate(_STANDARD, b" \t\r\n").rstrip(b"=")
            return binascii.a2b_base64(coded + b"=" * (-len(coded) % 4), strict_mode=True)
    except ValueError:  # binascii.Error is one
        raise Problem(400, "image is not valid base64") from None


def _from_form(content_type: bytes, body: bytes) -> bytes:
    found: list[Field | File] = []

    def take(part: Field | File) -> None:
        refuse_others([(part.field_name or b"").decode("latin-1")], ("image",), "the form")
        if found:
            raise Problem(400, "the form has image several times; send one image a request")
        found.append(part)

    closed: list[bool] = []
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(400, f"multipart/form-data names no boundary; {_SEND_FORM}")
    try:
        form = FormParser(
            "multipart/form-data",
            take,
            take,
            on_end=lambda: closed.append(True),
            boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": len(body)},
        )
        form.write(body)
        form.finalize()
    except FormParserError as error:
        raise Problem(400, f"malformed multipart form: {str(error)[:200]}") from None
    if not closed:
        raise Problem(400, f"the form is cut off: no closing boundary ends it; {_SEND_FORM}")
    if not found:
        raise Problem(400, f'the form has no field "image"; {_SEND_FORM}')
    if not isinstance(found[0], File):
        what = 'the field "image" is not a file: its part has no filename'
        raise Problem(400, f"{what} (filename* is not read); {_SEND_FORM}")
    file = found[0].file_object
    file.seek(0)
    return file.read()
