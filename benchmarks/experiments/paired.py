"""Paired differences: the same seeds with and without, their mean and an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Of Student's distribution, 95 % two-sided, with 1, 2, ... degrees of freedom."""


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval (infinite for one difference)."""
    mean = statistics.mean(differences)
    count = len(differences)
    if count < 2:
        return mean, math.inf
    t = _T[min(count - 1, len(_T)) - 1]
    return mean, t * statistics.stdev(differences) / math.sqrt(count)


def in_words(differences: Sequence[float], digits: int = 2) -> str:
    """Such as ``+1.25 ± 0.31``; without an interval where there is one seed."""
    mean, half = interval(differences)
    spread = f" ± {half:.{digits}f}" if math.isfinite(half) else ""
    return f"{mean:+.{digits}f}{spread}"
