"""Scores: how often answers are right, and how sure that is."""

from __future__ import annotations

import math

CONFIDENCE = 1.959964
"""Standard deviations of a normal distribution to both sides that hold 95 %."""


def wilson(right: int, seen: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson (1927): it stays within 0..1 and fits few images."""
    if not seen:
        return 0.0, 1.0
    share, z2 = right / seen, CONFIDENCE**2
    centre = (share + z2 / (2 * seen)) / (1 + z2 / seen)
    half = CONFIDENCE * math.sqrt(share * (1 - share) / seen + z2 / (4 * seen**2))
    half /= 1 + z2 / seen
    return max(centre - half, 0.0), min(centre + half, 1.0)
