"""The interval of a share that was measured on so many images."""

from __future__ import annotations

import math

Z = 1.96
"""Standard errors to either side of what is within it in 95 of 100 cases."""


def interval(share: float, images: float) -> tuple[float, float]:
    """The 95 % interval of a share such as an accuracy (Wilson's), in 0..1."""
    spread = Z * math.sqrt(share * (1 - share) / images + (Z / (2 * images)) ** 2)
    middle, scale = share + Z**2 / (2 * images), 1 + Z**2 / images
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
