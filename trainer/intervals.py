"""What so many images can tell: intervals of accuracies, and whether two of them differ."""

from __future__ import annotations

import math

import numpy as np

LEAST_IMAGES = 25
"""On fewer held-out images the interval of an accuracy is wider than 20 points to either side."""

Z = 1.96
"""Standard errors to either side of what is within it in 95 of 100 cases."""


def interval(accuracy: float, images: float) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was measured on so many images (Wilson's), in 0..1."""
    spread = Z * math.sqrt(accuracy * (1 - accuracy) / images + (Z / (2 * images)) ** 2)
    middle, scale = accuracy + Z**2 / (2 * images), 1 + Z**2 / images
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def is_better(right: np.ndarray, other_right: np.ndarray) -> bool:
    """Whether one subnet is better than another, beyond chance.

    right, other_right: bool, (images,), which images each gets right. Of those that one alone gets
    right (McNemar's test, exact), as many as that are this one's once in forty times by chance.
    """
    from scipy.stats import binomtest

    wins, losses = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    if wins <= losses:
        return False
    return bool(binomtest(wins, wins + losses, alternative="greater").pvalue < 0.025)
