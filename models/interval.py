"""95 % intervals of what was measured on so many images."""

from __future__ import annotations

import math

import numpy as np

Z = 1.96
"""Standard errors to either side of what is within it in 95 of 100 cases."""


def interval(share: float, images: float) -> tuple[float, float]:
    """The 95 % interval of a share such as an accuracy (Wilson's), in 0..1."""
    spread = Z * math.sqrt(share * (1 - share) / images + (Z / (2 * images)) ** 2)
    middle, scale = share + Z**2 / (2 * images), 1 + Z**2 / images
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def paired(differences: np.ndarray) -> tuple[float, float]:
    """Mean of differences, of the same images before and after, and half of its 95 % interval."""
    half = Z * differences.std(ddof=1) / math.sqrt(len(differences))
    return float(differences.mean()), float(half)
