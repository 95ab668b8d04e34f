"""JPEG files: their segments and scans, walked as libjpeg does before it is given anything.

A file may hold a million empty segments, which Pillow reads one by one in Python, or go over the
same pixels a thousand times. What is read here takes microseconds, whatever the file.

Source: ITU T.81, annex B.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from models.images.header import MAX_PIXELS, ImageError, ImageHeader, damaged
from models.images.orientation import UPRIGHT, exif_orientation, xmp_orientation

END = b"\xff\xd9"
"""The marker at the end of a file; these two bytes cannot stand within a scan."""

# Before the first scan: so many segments, and one more for so many bytes. A profile or a packet of
# XMP that is larger than 64 kB comes in several.
_SEGMENTS, _SEGMENT_BYTES = 64, 4096
# Between two of them: some cameras align them.
_FILL_BYTES = 4096
# Encoders write a dozen scans. Each goes over all pixels, whether it holds anything or not.
_SCANS = 100
_SCANS_OF_THE_LARGEST = 20

_HEAD = struct.Struct(">BBH")
_FRAME = struct.Struct(">HHB")
_FRAMES, _PROGRESSIVE = (0xC0, 0xC1, 0xC2), 0xC2
# Arithmetic coding, lossless, hierarchical: no browser reads them, and a few bytes of the first
# keep a decoder busy for seconds.
_RARE_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_SCAN, _APP1 = 0xDA, 0xE1
_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))
_TABLES = (0xC4, 0xCC, 0xDB, 0xDC, 0xDD)
# Comments and application data; JFIF (E0) and Adobe (EE) say what the colours mean.
_BESIDE = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
_KNOWN = frozenset((*_FRAMES, *_TABLES, *_BESIDE, _SCAN, 0xE0, 0xEE))
# Of the size, the colours or the orientation.
_SAYS_NOTHING = _KNOWN - {*_FRAMES, _SCAN, _APP1}
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)


def read_jpeg_header(data: bytes) -> ImageHeader:
    """Size, colours and orientation.

    Raises ImageError for what no decoder should be given, struct.error where the file ends before.
    """
    frame = width = height = colours = 0
    exif = xmp = b""
    for kind, start, end in _segments(data, _SAYS_NOTHING):
        if kind in _FRAMES:
            if frame:
                raise damaged("JPEG", "it has two frames")
            frame = kind
            height, width, colours = _FRAME.unpack_from(data, start + 5)
            if not colours:
                raise damaged("JPEG", "its frame has no colours")
        elif kind == _APP1:
            if not exif and data.startswith(b"Exif\0\0", start + 4):
                exif = data[start + 4 : end]
            elif not xmp and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start + 4):
                xmp = data[start + 4 : end]
        elif kind == _SCAN:
            if not frame:
                raise damaged("JPEG", "a scan comes before its frame")
            several = frame == _PROGRESSIVE or data[start + 4] != colours
            orientation = UPRIGHT
            if exif or xmp:
                orientation = exif_orientation(exif) or xmp_orientation(xmp) or UPRIGHT
            return ImageHeader("JPEG", width, height, orientation, colours, start if several else 0)
    raise AssertionError("what has no scan is refused")


def check_scans(data: bytes, header: ImageHeader, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError 422 where a JPEG goes over its pixels more often than encoders do.

    Takes a millisecond for each megabyte of a file with several scans, and no time for others.
    """
    if not header.scans_at:
        return
    most = max(min(_SCANS, _SCANS_OF_THE_LARGEST * max_pixels // header.pixels), 1)
    # These two bytes begin every scan, and cannot stand within one.
    if data.count(b"\xff\xda", header.scans_at) <= most:
        return
    if _scans(data, header.scans_at, most) > most:
        raise ImageError(
            f"a JPEG of {header.pixels:,} pixels with more than {most} scans; "
            "save it with fewer, or as a baseline JPEG",
            422,
        )


def jpeg_alone(data: bytes) -> bytes:
    """The file without what stands beside the picture: EXIF, profiles, comments, thumbnails.

    No pixel depends on it, and Pillow would read all of it.
    """
    kept = [data[:2]]
    for kind, start, end in _segments(data):
        if kind == _SCAN:
            kept.append(data[start:])
        elif kind not in _BESIDE:
            kept.append(data[start:end])
    return b"".join(kept)


def _segments(
    data: bytes, passed_over: frozenset[int] = frozenset()
) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of each segment; the first scan is the last."""
    at, filled = 2, 0
    unpack_from = _HEAD.unpack_from
    for _ in range(_SEGMENTS + len(data) // _SEGMENT_BYTES):
        mark, kind, length = unpack_from(data, at)
        if mark == 0xFF and kind in passed_over and length > 1:
            at += 2 + length
            continue
        if mark != 0xFF or kind in (0x00, 0xFF):
            found = _MARKER.search(data, at, at + _FILL_BYTES)
            filled += _FILL_BYTES if found is None else found.start() - at
            if found is None or filled > _FILL_BYTES:
                raise damaged("JPEG", "no marker where one should be")
            at = found.start()
            _, kind, length = _HEAD.unpack_from(data, at)
        if kind in _KNOWN:
            end = at + 2 + max(length, 2)
            yield kind, at, end
            if kind == _SCAN:
                return
            at = end
        elif kind in _NO_LENGTH:
            at += 2
        elif kind in _RARE_FRAMES:
            raise ImageError(
                f"a JPEG of a rare kind (frame {kind:X}); save it as a baseline JPEG", 422
            )
        else:
            raise damaged("JPEG", f"marker {kind:02X} stands before its first scan")
    raise damaged("JPEG", "it has too many segments before its first scan")


def _scans(data: bytes, at: int, most: int) -> int:
    """How many scans libjpeg sees from ``at`` on; the count ends beyond ``most``."""
    count = 0
    while count <= most:
        found = _MARKER.search(data, at)
        if found is None:
            break
        kind, at = data[found.start() + 1], found.end()
        if kind < _FRAMES[0] or kind in _NO_LENGTH:
            continue
        if kind not in _KNOWN:
            break  # the end, or what libjpeg ends at
        count += kind == _SCAN
        at += max(int.from_bytes(data[at : at + 2], "big"), 2)
    return count
