"""WebP files: the size of the canvas and the number of chunks, read before libwebp is given any.

It takes memory for the canvas, and a moment for each frame of an animation, before anyone can ask
how large it is.

Source: RFC 9649, 2.3 to 2.7; RFC 6386, 9.1.
"""

from __future__ import annotations

import struct

from models.images.header import ImageHeader, damaged

_FIRST_CHUNK = 12
# Each frame of an animation is one; five minutes of it are fewer.
_CHUNKS = 4096
_HEAD = struct.Struct("<4sI")


def read_webp_header(data: bytes) -> ImageHeader:
    """The size.

    Raises ImageError for what no decoder should be given, struct.error where the file ends before.
    """
    kind = data[_FIRST_CHUNK : _FIRST_CHUNK + 4]
    if kind == b"VP8X":
        (bits,) = struct.unpack_from("<Q", data[24:30] + b"\0\0")
        width, height = (bits & 0xFFFFFF) + 1, (bits >> 24) + 1
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise damaged("WEBP", "its first chunk holds no picture")
    at = _FIRST_CHUNK
    for _ in range(_CHUNKS):
        if at + _HEAD.size > len(data):
            return ImageHeader("WEBP", width, height)
        _, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size + length + length % 2
    raise damaged("WEBP", "it has too many chunks")
