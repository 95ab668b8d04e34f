"""PNG files: their chunks, walked before Pillow is given any.

Pillow reads every chunk in Python, and inflates and keeps profiles and texts. A hostile file may be
a million empty chunks, or a thousand that inflate to a megabyte each. So Pillow gets the chunks of
the picture only, and files with more chunks than encoders write are refused.

Source: w3.org/TR/png-3, 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from models.images.header import ImageHeader, damaged
from models.images.orientation import UPRIGHT, exif_orientation, xmp_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# So many, and one more for so many bytes. libpng writes chunks of 8,192 bytes.
_CHUNKS, _CHUNK_BYTES = 64, 2048
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# What an orientation may stand in: EXIF; EXIF as ImageMagick wrote it; XMP.
_EXIF, _TEXTS = b"eXIf", (b"zTXt", b"tEXt", b"iTXt")
_RAW_EXIF, _XMP = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
_TEXT_BYTES = 200_000

_GREY, _RGB = 0, 2
_HEAD = struct.Struct(">I4s")
_SIZE = struct.Struct(">II")


def read_png_header(data: bytes) -> ImageHeader:
    """Size and orientation.

    Raises ImageError for what no decoder should be given, struct.error where the file ends before.
    """
    size: tuple[int, int] | None = None
    exif = raw = xmp = None
    for kind, start, end in _chunks(data):
        if kind == b"IHDR":
            if size is not None:
                raise damaged("PNG", "it has two headers")
            size = _SIZE.unpack_from(data, start + 8)
        elif size is None:
            raise damaged("PNG", "its header is not the first chunk")
        elif kind == _EXIF:
            exif = exif or data[start + 8 : end - 4]
        elif kind in _TEXTS:  # the first of each, whatever it says: to inflate it takes a moment
            if raw is None and data.startswith(_RAW_EXIF, start + 8):
                raw = data[start + 8 + len(_RAW_EXIF) : end - 4]
                raw = raw if kind == b"tEXt" else _inflated(raw[1:])
            elif xmp is None and data.startswith(_XMP, start + 8):
                xmp = _international(data[start + 8 + len(_XMP) : end - 4])
    if size is None:
        raise damaged("PNG", "it has no header")
    orientation = UPRIGHT
    if exif or raw or xmp:
        exif = exif or _from_hexadecimal(raw or b"")
        orientation = exif_orientation(exif) or xmp_orientation(xmp or b"") or UPRIGHT
    width, height = size
    return ImageHeader("PNG", width, height, orientation)


def png_alone(data: bytes) -> bytes:
    """The file without what stands beside the picture. No pixel depends on it."""
    kept = [SIGNATURE]
    depth = colours = 0
    for kind, start, end in _chunks(data):
        if kind == b"IHDR":
            depth, colours = data[start + 16], {_GREY: 1, _RGB: 3}.get(data[start + 17], 0)
        if kind == b"tRNS" and colours:
            kept.append(_transparent(struct.unpack_from(f">{colours}H", data, start + 8), depth))
        elif kind in _PICTURE:
            kept.append(data[start:end])
    return b"".join(kept)


def _transparent(colour: tuple[int, ...], depth: int) -> bytes:
    """The chunk that says which colour is transparent, in 8 bits, as Pillow compares it.

    But for 16-bit greyscale, which Pillow keeps. Of 16-bit RGB it has the high bytes alone: what
    has the same is transparent, too.
    """
    if depth <= 8:
        most = 2**depth - 1  # which the standard masks by
        colour = tuple((value & most) * 255 // most for value in colour)
    elif depth == 16 and len(colour) == 3:
        colour = tuple(value >> 8 for value in colour)
    body = b"tRNS" + struct.pack(f">{len(colour)}H", *colour)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end (which may be beyond the file's) of each chunk."""
    at = len(SIGNATURE)
    for _ in range(_CHUNKS + len(data) // _CHUNK_BYTES):
        if at + _HEAD.size > len(data):
            return
        length, kind = _HEAD.unpack_from(data, at)
        end = at + 12 + length
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
    raise damaged("PNG", "it has too many chunks")


def _inflated(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed[:_TEXT_BYTES], _TEXT_BYTES)
    except zlib.error:
        return b""  # broken metadata must not cost the user a sound photo


def _international(text: bytes) -> bytes:
    """What an iTXt chunk says, after its keyword: flag, method, language and its name there."""
    packed, parts = text[:1] != b"\0", text[2:].split(b"\0", 2)
    if len(parts) < 3:
        return b""
    return _inflated(parts[2]) if packed else parts[2]


def _from_hexadecimal(raw: bytes) -> bytes:
    """EXIF as ImageMagick writes it: three lines (empty, name, length), then hexadecimal digits."""
    digits = b"".join(raw[:_TEXT_BYTES].split(b"\n")[3:])
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return b""
