"""Confidence: how sure a bundle's subnets are, and which of them answers first. No torch.

Fitted on held-out images (``trainer.pairs``), stored in ``bundle.json``, read by the server.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Confidence:
    """What makes a probability one that can be compared with a wish, and splits a budget in two.

    temperatures: (FLOPs of a subnet, by what its logits are divided), by FLOPs. pairs: (budget,
    FLOPs of the subnet that answers first, of the one that does where that is not sure), from which
    budget on, ascending; 0 and 0 where two subnets are worth less than one. images, data: what both
    were fitted on.
    """

    temperatures: tuple[tuple[int, float], ...]
    pairs: tuple[tuple[int, int, int], ...]
    images: int
    data: str

    def temperature(self, flops: int) -> float:
        """A subnet's temperature; between its neighbours' if it was not measured itself."""
        known, values = zip(*self.temperatures, strict=True)
        return float(np.interp(flops, known, values))

    def pair(self, budget_flops: float) -> tuple[int, int] | None:
        """FLOPs of those who share a budget; None where one subnet has all of it."""
        place = bisect_right(self.pairs, budget_flops, key=lambda row: row[0])
        _, first, second = self.pairs[place - 1] if place else (0, 0, 0)
        return (first, second) if first else None
