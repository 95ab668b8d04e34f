"""The last decisions of an arch, which know what is left of the budget. No torch.

A generator that decides in sequence cannot see, when it decides the width of a stage, what is left
to land on a budget: its last decisions would have to know the exact cost of those before. Here
they do. When all but the tail is decided, the cost of every way to end is looked up at once, and
each of the last decisions loses probability for what it can no longer reach. Preferences decide
among the ends that are near enough; which those are the budget decides.

No sources: this project's own. Sampled and argmax archs go through it; ``answer_within`` asks only
which ends keep the budget.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np

from models.costs.cost import Cost

NEAR = 0.0025
"""How far below a budget an end may be, relative to it, without losing probability."""

PRICE = 2000.0
"""What a logit loses for each part of the budget beyond that: 10 for half a percent."""

OVER = 2.0
"""How many times worse it is to be over the budget than under it."""

LARGEST_TOLL = 12.0
"""What a logit loses at most: enough against any preference (logits lie between -6 and 6)."""

MOST_ENDS = 128


@lru_cache(maxsize=64)
def tail_of(cost: Cost) -> Tail:
    """The tail of a cost's space, made once."""
    return Tail(cost)


class Tail:
    """The tail of a space: as many of its last decisions as have at most 128 ways to end.

    Decisions of blocks that may be dropped are not part of it: where the block is, they are decided
    before. ``order``: all decisions of the space, by position, in the order of generation; the
    last ``len(decisions)`` are the tail. ``decided``: those that have a choice.
    """

    def __init__(self, cost: Cost) -> None:
        space = cost.space
        counts = [len(d.choices) for d in space.decisions]
        tail: list[int] = []
        for place in reversed(range(len(counts))):
            if space.decisions[place].block is not None or counts[place] == 1:
                continue
            if math.prod(counts[i] for i in (*tail, place)) > MOST_ENDS:
                break
            tail.insert(0, place)
        self.decisions = tuple(tail)
        self.order = (*(i for i in range(len(counts)) if i not in tail), *tail)
        self.decided = tuple(i for i in self.order if counts[i] > 1)
        self._counts = tuple(counts[i] for i in tail)
        self._ends = np.array(list(itertools.product(*(range(n) for n in self._counts))))
        self._rule = cost.rule

    def gaps(self, indices: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """How far every end is from its budget, relative to it: (batch, choices, choices, ...).

        ``indices``: int (batch, decisions), positions of the choices before the tail; budgets:
        float64 (batch,).
        """
        costs = self.costs(indices)
        budgets = budgets.reshape(-1, *[1] * len(self._counts))
        gap = (budgets - costs) / budgets
        return np.where(gap < 0, NEAR - OVER * gap, gap)

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """Of every way to end for each arch: (batch, choices, choices, ...)."""
        return self._rule.batch(self.all_ends(indices)).reshape(len(indices), *self._counts)

    def all_ends(self, indices: np.ndarray) -> np.ndarray:
        """Every way to end for each arch: (batch, decisions) -> (batch x ends, decisions)."""
        archs = np.repeat(indices, len(self._ends), axis=0)
        archs[:, self.decisions] = np.tile(self._ends, (len(indices), 1))
        return archs

    @staticmethod
    def toll(gaps: np.ndarray) -> np.ndarray:
        """What the logits of the next decision lose: float32 (batch, choices)."""
        nearest = gaps.reshape(*gaps.shape[:2], -1).min(axis=2)
        # where all are far, what counts is which is nearest
        beyond = np.maximum(nearest, NEAR) - np.maximum(nearest.min(1, keepdims=True), NEAR)
        return np.minimum(PRICE * beyond, LARGEST_TOLL).astype(np.float32)

    @staticmethod
    def after(gaps: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """The gaps that are left when the next decision is made: int (batch,) choices."""
        return gaps[np.arange(len(gaps)), choices]
