"""The answer to a budget: the most probable arch that keeps it. No torch.

A budget is a bound and not a target: every arch within ``WITHIN`` below it is as good as another,
and among them the generator's joint probability decides. It is a beam search in the order of
generation. Prefixes that no end can bring near the budget are dropped on the way, so that an answer
is never over budget, and rarely more than ``WITHIN`` under it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.costs.cost import Cost
from models.generator.policy import GeneratorPolicy, log_softmax
from models.generator.tail import tail_of
from models.space.arch import Arch

WITHIN = 0.015
"""How far below the budget an answer may stay for the sake of probability, relative to it."""

_WIDER = (0.05, 0.2, 1.0)
"""Where a space has no arch that near."""

_BEAM = 16


def answer_within(policy: GeneratorPolicy, budget: float) -> Arch:
    """The generator's arch for a budget, which is in whole numbers of the policy's cost.

    Where the space has no arch within ``WITHIN`` of the budget, one that is near below. Raises
    ValueError for a budget below the cheapest subnet.
    """
    cost = policy.cost
    if not budget >= cost.min:
        raise ValueError(
            f"a budget of {cost.written(budget)} is below the smallest subnet of "
            f"{cost.space.name} ({cost.written(cost.min)})"
        )
    if budget >= cost.max:
        return cost.space.largest
    for within in (WITHIN, *_WIDER):
        arch = _search(policy, budget, (1 - within) * budget)
        if arch is not None:
            return arch
    raise AssertionError("the cheapest subnet keeps every budget that is asked")


def answers_within(policy: GeneratorPolicy, budgets: Sequence[float]) -> list[Arch]:
    """The archs for many budgets."""
    return [answer_within(policy, budget) for budget in budgets]


def _search(policy: GeneratorPolicy, most: float, least: float) -> Arch | None:
    """The most probable arch between these costs, or None if the beam leads to none.

    The generator is asked for the upper bound.
    """
    space, tail = policy.space, tail_of(policy.cost)
    state = policy.begin([most])
    archs, scores = np.zeros((1, len(space.decisions)), np.int64), np.zeros(1)
    ends: np.ndarray | None = None
    for number, place in enumerate(tail.decided):
        if place in tail.decisions and ends is None:
            costs = tail.costs(archs)
            ends = (costs <= most) & (costs >= least)
        logits, state = policy.step(state, place)
        total = scores[:, None] + log_softmax(logits)
        if ends is None:
            low, high = _reach(policy.cost, archs, tail.decided[number:])
            possible = (low <= most) & (high >= least)
        else:
            possible = ends.reshape(*total.shape, -1).any(axis=2)
        if not possible.any():
            return None
        total[~possible] = -np.inf
        best = np.argsort(-total, axis=None, kind="stable")[: min(_BEAM, possible.sum())]
        rows, choices = np.divmod(best, total.shape[1])
        archs, scores = archs[rows], total[rows, choices]
        archs[:, place] = choices
        state = policy.choose(state, place, rows, choices)
        ends = None if ends is None else ends[rows, choices]
    return space.from_indices(archs[0].tolist())


def _reach(cost: Cost, archs: np.ndarray, undecided: Sequence[int]) -> np.ndarray:
    """The least and the most behind each choice of the next decision: (2, prefixes, choices).

    Of the ends as the cheapest arch has them, and as the largest. FLOPs grow with every decision,
    so these are the bounds. Measured costs need not; then they are two ends that there are, and a
    prefix that is kept still has one within the budget.
    """
    place, *rest = undecided
    count = len(cost.space.decisions[place].choices)
    low = np.repeat(archs, count, axis=0)
    low[:, place] = np.tile(np.arange(count), len(archs))
    low[:, rest] = cost.space.indices(cost.cheapest)[rest]
    high = low.copy()
    high[:, rest] = cost.space.indices(cost.space.largest)[rest]
    return cost.rule.batch(np.concatenate([low, high])).reshape(2, len(archs), count)
