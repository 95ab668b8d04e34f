"""FLOPs as people write them: 4000000, 4e6, 4M, 1.3G."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from decimal import ROUND_DOWN, Context, Decimal

MAX_LENGTH = 40
"""Of a number with the blanks around it; far more than any needs."""

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"{_NUMBER}(?:[eE]([+-]?\d{{1,3}}))?", re.ASCII)
_FLOPS = re.compile(rf"{_NUMBER}(?:[eE]([+-]?\d{{1,3}})|([KMG]))?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "K": 3, "M": 6, "G": 9}
# Exact for what is so short; never more than was written.
_EXACT = Context(prec=2 * MAX_LENGTH, rounding=ROUND_DOWN)
# No network has as many; it keeps integers small.
_CEILING = 10**18
# Of a number on a command line: hours, seconds and milliseconds can be added up and multiplied.
_MOST = 1e9


def parse_flops(text: str) -> int:
    """Whole multiply-adds, rounded down; ``10**18`` for more. Raises ValueError with examples."""
    match = _match(_FLOPS, text)
    if match is None:
        shown = repr(text[:MAX_LENGTH])
        raise ValueError(f"{shown} is not a number of FLOPs; write 4000000, 4e6, 4M or 1.3G")
    number, exponent, suffix = match.groups()
    power = int(exponent or 0) + _POWERS[(suffix or "").upper()]
    return int(min(Decimal(number).scaleb(power, _EXACT), Decimal(_CEILING)))


def parse_number(text: str) -> Decimal:
    """A number that is not negative, maybe with an exponent. Raises ValueError."""
    match = _match(_PLAIN, text)
    if match is None:
        raise ValueError(f"{text[:MAX_LENGTH]!r} is not a number, 0 or more")
    number, exponent = match.groups()
    return Decimal(number).scaleb(int(exponent or 0), _EXACT)


def positive(text: str) -> float:
    """A number on a command line, for ``type=`` of argparse, which names the option."""
    try:
        value = float(parse_number(text))
    except ValueError:
        value = 0.0
    if not 0 < value <= _MOST:
        raise ArgumentTypeError(
            f"{text[:MAX_LENGTH]!r} is not a number above 0 and up to {_MOST:g}; write e.g. 2.5"
        )
    return value


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    # Its length first: it may come from anyone, and be megabytes of blanks.
    return pattern.fullmatch(text.strip(" \t")) if len(text) <= MAX_LENGTH else None
