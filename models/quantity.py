"""FLOPs as people write them: 4000000, 4e6, 4M, 1.3G."""

from __future__ import annotations

import re
from decimal import Decimal

_PATTERN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d{1,2})|([KkMmGg]))?")
_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_flops(text: str) -> int:
    """Whole multiply-adds. Raises ValueError saying what is allowed."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None or len(text) > 40:
        raise ValueError(f"{text!r:.40} is no number of FLOPs; write 4000000, 4e6, 4M or 1.3G")
    number, exponent, suffix = match.groups()
    scale = Decimal(10) ** int(exponent or 0) * _SUFFIXES[(suffix or "").upper()]
    return int(Decimal(number) * scale)
