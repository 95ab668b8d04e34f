"""Allowed: which numbers a setting takes, checked as soon as a recipe is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Allowed:
    """The numbers that a setting takes; ``words`` come after "it takes"."""

    words: str
    holds: Callable[[float], bool]


def at_least(least: int, note: str = "") -> Allowed:
    """This number and all above it. ``note``: what the least of them means, or what else to do."""
    return Allowed(f"at least {least}" + (f": {note}" if note else ""), lambda n: n >= least)


ABOVE_ZERO = Allowed("a number above 0", lambda number: number > 0)
SHARE = Allowed("a share, 0 to 1", lambda number: 0 <= number <= 1)
NOT_ALL = Allowed("a share of at least 0 and below 1", lambda number: 0 <= number < 1)
SOME = Allowed("a share above 0 and below 1, like 0.1", lambda number: 0 < number < 1)


def check_numbers(prefix: str, settings: object, allowed: Mapping[str, Allowed]) -> None:
    """Check the numbers of some settings. Raises ValueError naming one: its value, what it takes.

    prefix: what ``--set`` puts before their names. No number but a finite one is ever allowed.
    """
    for name, value in vars(settings).items():
        if type(value) not in (int, float):
            assert name not in allowed
            continue
        takes = allowed[name]
        if not (math.isfinite(value) and takes.holds(value)):
            raise ValueError(f"{prefix}{name} is {value}; it takes {takes.words}")
