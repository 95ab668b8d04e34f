"""Paired differences: the same seeds with and without, their mean and an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval (infinite for one difference)."""
    mean = statistics.mean(differences)
    count = len(differences)
    if count < 2:
        return mean, math.inf
    return mean, float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)


def in_words(differences: Sequence[float], digits: int = 2) -> str:
    """Such as ``+1.25 ± 0.31``; without an interval where there is one seed."""
    mean, half = interval(differences)
    spread = f" ± {half:.{digits}f}" if math.isfinite(half) else ""
    return f"{mean:+.{digits}f}{spread}"
