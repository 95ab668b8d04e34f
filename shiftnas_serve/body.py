"""Body: the image bytes of a request, in any of the forms it may be sent in."""

from __future__ import annotations

import base64
import binascii
import json

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from shiftnas_serve.problem import Problem

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
ACCEPTED = (*RAW_TYPES, "multipart/form-data", "application/json")


async def read_image(request: Request, limit_bytes: int) -> bytes:
    """The encoded image. Raises Problem: 400 malformed or empty, 413 too long, 415 other types.

    Raw, as the field ``image`` of a multipart form, or base64 in JSON ``{"image": ...}``. A raw
    body's content decides its format, not its content type, which may be missing.
    """
    given = request.state.headers.get("content-type", "").partition(";")[0].strip().lower()
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
    body = await read_body(request, limit_bytes)
    if media_type == "application/json":
        return _from_json(body)
    if media_type == "multipart/form-data":
        return await _from_form(request, body)
    if not body:
        raise Problem(400, "the body is empty; send the bytes of an image")
    return body


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body as it is. Raises Problem: 400 the client went away, 413 too long."""
    length = request.state.headers.get("content-length", "0")
    if not length.isdecimal():
        raise Problem(400, f"Content-Length: {length!r:.40} is not a number")
    too_long = f"the body is larger than {limit_bytes:,} bytes"
    if int(length) > limit_bytes:
        raise Problem(413, too_long)
    chunks: list[bytes] = []
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "the client went away before the body was complete")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > limit_bytes:
            raise Problem(413, too_long)
        chunks.append(chunk)
    return b"".join(chunks)


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


async def _from_form(request: Request, body: bytes) -> bytes:
    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, replay).form(max_files=4, max_fields=16)
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
