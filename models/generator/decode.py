"""Decoding with a guarantee: the most probable arch that keeps a budget. No torch.

The argmax of the generator can miss the budget. Here the answer is searched among archs whose
FLOPs lie in ``[(1 - SLACK) * budget, budget]``, most probable first; where the space has none in
that window, the one nearest below it. So an answer is never over budget and rarely much under.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from models.generator.tail import tail_of
from models.space.arch import Arch
from models.space.search_space import SearchSpace

SLACK = 0.03
"""How far below the budget an answer may stay for the sake of probability."""

_ROUNDS = 8
_FEW_CHANGES = 16
# Thousands of archs in one array would take longer to lie in memory than to be scored.
_SCORED_AT_ONCE = 512
_OUTSIDE = -1e5  # scores below are of archs outside the window


def decode(
    space: SearchSpace, log_probabilities: Sequence[np.ndarray], budget_flops: float
) -> Arch:
    """The arch for a budget from the generator's log-probabilities (one array per decision).

    The argmax, if it lies in the window. Else a local search from it: all single and all paired
    changes of decisions and all tails (``tail.py``), best first, until none improves. Raises
    ValueError for a budget below the smallest subnet.
    """
    if not budget_flops >= space.min_flops:
        raise ValueError(
            f"a budget of {budget_flops:,.0f} FLOPs is below the smallest subnet of {space.name} "
            f"({space.min_flops:,} FLOPs)"
        )
    if budget_flops >= space.max_flops:
        return space.largest
    search = _Search(space, log_probabilities, budget_flops)
    return space.from_indices(search.run().tolist())


def decode_all(
    space: SearchSpace, log_probabilities: Sequence[np.ndarray], budgets_flops: Sequence[float]
) -> list[Arch]:
    """The archs for many budgets: ``log_probabilities`` of shape (budgets, choices) each."""
    return [
        decode(space, [rows[i] for rows in log_probabilities], budget)
        for i, budget in enumerate(budgets_flops)
    ]


class _Search:
    def __init__(
        self, space: SearchSpace, log_probabilities: Sequence[np.ndarray], budget: float
    ) -> None:
        self._rule, self._budget, self._tail = space.flops_rule, budget, tail_of(space)
        self._counts = [len(d.choices) for d in space.decisions]
        self._free = [i for i, count in enumerate(self._counts) if count > 1]
        self._table = np.full((len(self._counts), max(self._counts)), -np.inf)
        for row, values in zip(self._table, log_probabilities, strict=True):
            row[: len(values)] = values

    def run(self) -> np.ndarray:
        here = self._table.argmax(axis=1)
        flops = self._rule.batch(here[None])[0]
        if (1 - SLACK) * self._budget <= flops <= self._budget:
            return here  # nothing is more probable
        here = self._within(here)
        score = self._score(here[None])[0]
        for _ in range(_ROUNDS):
            near = self._neighbours(here)
            scores = self._score(near)
            if max(scores.max(), score) < _OUTSIDE:  # not in the window yet: look further
                near = self._further(here)
                scores = self._score(near)
            best = int(scores.argmax())
            if scores[best] <= score + 1e-9:
                break
            here, score = near[best], scores[best]
        return here

    def _score(self, archs: np.ndarray) -> np.ndarray:
        """Log-probability; what is outside the window ranks below all that is inside."""
        starts = range(0, len(archs), _SCORED_AT_ONCE)
        return np.concatenate([self._score_some(archs[i : i + _SCORED_AT_ONCE]) for i in starts])

    def _score_some(self, archs: np.ndarray) -> np.ndarray:
        flops = self._rule.batch(archs)
        cells = archs + self._table.shape[1] * np.arange(len(self._counts))
        probability = np.take(self._table, cells).sum(axis=1)
        shortfall = np.maximum((1 - SLACK) * self._budget - flops, 0) / self._budget
        score = np.where(shortfall > 0, -1e6 * (1 + shortfall), 0) + probability
        return np.where(flops > self._budget, -np.inf, score)

    def _within(self, here: np.ndarray) -> np.ndarray:
        """Step down, least loss of probability per FLOP saved first, until the budget is kept."""
        while (flops := self._rule.batch(here[None])[0]) > self._budget:
            lower = np.repeat(here[None], len(self._free), axis=0)
            rows = np.arange(len(self._free))
            lower[rows, self._free] = np.maximum(here[self._free] - 1, 0)
            saved = flops - self._rule.batch(lower)
            now = self._table[self._free, here[self._free]]
            then = self._table[self._free, lower[rows, self._free]]
            moved = here[self._free] > 0
            price = np.where(
                moved & (saved > 0), (now - then + 1e-3) / np.maximum(saved, 1), np.inf
            )
            step = int(price.argmin())
            if not np.isfinite(price[step]):  # what is left to lower belongs to dropped blocks
                step = int(moved.argmax())
                assert moved[step], "the smallest arch is within every budget that is asked"
            here = lower[step]
        return here

    def _neighbours(self, here: np.ndarray) -> np.ndarray:
        """Every change of one or two decisions, and every other tail."""
        moves = [
            (i, choice)
            for i in self._free
            for choice in range(self._counts[i])
            if choice != here[i]
        ]
        decision = np.array([move[0] for move in moves])
        choice = np.array([move[1] for move in moves])
        singles = np.repeat(here[None], len(moves), axis=0)
        singles[np.arange(len(moves)), decision] = choice
        first, second = np.triu_indices(len(moves), k=1)
        apart = decision[first] != decision[second]
        first, second = first[apart], second[apart]
        pairs = singles[first]
        pairs[np.arange(len(pairs)), decision[second]] = choice[second]
        return np.concatenate([singles, pairs, self._tail.all_ends(here[None])])

    def _further(self, here: np.ndarray) -> np.ndarray:
        """Every tail after one or two changes before it; in large spaces after one."""
        changes = [
            (place, choice)
            for place in self._free
            for choice in range(self._counts[place])
            if place not in self._tail.decisions and choice != here[place]
        ]
        near = [here]
        for depth in (1, 2):
            if depth == 2 and len(changes) > _FEW_CHANGES:
                break
            for some in itertools.combinations(changes, depth):
                near.append(here.copy())
                for place, choice in some:
                    near[-1][place] = choice
        return self._tail.all_ends(np.stack(near))
