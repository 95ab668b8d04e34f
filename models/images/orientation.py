"""Orientation: how a camera was held, as EXIF or XMP beside a picture says.

Read here and not by Pillow: that reads all of EXIF, whose entries may each name megabytes of the
same bytes.

Source: TIFF 6.0, section 2; EXIF 2.32, table 4; XMP specification, part 2.
"""

from __future__ import annotations

import re
import struct

UPRIGHT = 1
_TAG = 0x0112
# Byte orders, also as some cameras write them.
_ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"II\0*": "<", b"MM*\0": ">"}
_VALUES = {1: "B", 3: "H", 4: "I"}
# The tags of a directory ascend, and this is one of the first.
_MOST_ENTRIES = 512
# So far into XMP, which may be megabytes; this stands at its beginning.
_XMP_BYTES = 200_000
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def exif_orientation(block: bytes) -> int | None:
    """The orientation (1 to 8) in a block of EXIF; None where it says nothing that can be read."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    order = _ORDERS.get(block[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, at)
        for entry in range(at + 2, at + 2 + 12 * min(count, _MOST_ENTRIES), 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == _TAG and kind in _VALUES:
                return _known(struct.unpack_from(order + _VALUES[kind], block, entry + 8)[0])
    except struct.error:
        pass  # broken metadata must not cost the user a sound photo
    return None


def xmp_orientation(packet: bytes) -> int | None:
    """The orientation (1 to 8) in a packet of XMP; None where it names none."""
    found = _XMP.search(packet, 0, _XMP_BYTES)
    return None if found is None else _known(int(found[1]))


def _known(value: int) -> int | None:
    return value if 1 <= value <= 8 else None
