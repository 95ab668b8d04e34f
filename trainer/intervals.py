"""What so many images can tell: whether they are enough, and whether two subnets differ."""

from __future__ import annotations

import numpy as np

LEAST_IMAGES = 25
"""On fewer held-out images the interval of an accuracy is wider than 20 points to either side."""


def refuse_few(count: int) -> None:
    """Raises ValueError where so many images tell too little."""
    if count < LEAST_IMAGES:
        raise ValueError(f"{count} images are too few: give {LEAST_IMAGES} or more")


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
