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

    temperatures: (FLOPs of a subnet, by what its logits are divided), by FLOPs. firsts: (budget,
    FLOPs of the subnet that answers first), from which budget on, ascending; below, a budget is too
    small for two. images, data: what both were fitted on.
    """

    temperatures: tuple[tuple[int, float], ...]
    firsts: tuple[tuple[int, int], ...]
    images: int
    data: str

    def temperature(self, flops: int) -> float:
        """Of a subnet; of one that was not measured, between those of its neighbours."""
        known, values = zip(*self.temperatures, strict=True)
        return float(np.interp(flops, known, values))

    def first_flops(self, budget_flops: float) -> int | None:
        """Of the subnet that answers first; None where one subnet has all of the budget."""
        place = bisect_right(self.firsts, budget_flops, key=lambda row: row[0])
        return self.firsts[place - 1][1] if place else None

    def to_json(self) -> dict[str, object]:
        """As ``bundle.json`` has it."""
        return {
            "images": self.images,
            "data": self.data,
            "temperatures": [{"flops": f, "temperature": t} for f, t in self.temperatures],
            "firsts": [{"budget_flops": b, "first_flops": f} for b, f in self.firsts],
        }
