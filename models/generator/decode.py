"""Decoding with a guarantee: the most probable arch that keeps a budget. No torch.

A budget is a bound and not a target: every arch within ``WITHIN`` below it is as good as another,
and among them the generator's joint probability decides. It is a beam search in the order of
generation. Prefixes that no end can bring near the budget are dropped on the way, so that an answer
is never over budget, and rarely more than ``WITHIN`` under it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.generator.policy import GeneratorPolicy, log_softmax
from models.generator.tail import tail_of
from models.space.arch import Arch
from models.space.search_space import SearchSpace

WITHIN = 0.015
"""How far below the budget an answer may stay for the sake of probability, relative to it."""

_WIDER = (0.05, 0.2, 1.0)
"""Where a space has no arch that near."""

_BEAM = 16


def decode(policy: GeneratorPolicy, budget_flops: float) -> Arch:
    """The generator's arch for a budget.

    Where the space has no arch within ``WITHIN`` of the budget, one that is near below. Raises
    ValueError for a budget below the smallest subnet.
    """
    space = policy.space
    if not budget_flops >= space.min_flops:
        raise ValueError(
            f"a budget of {budget_flops:,.0f} FLOPs is below the smallest subnet of {space.name} "
            f"({space.min_flops:,} FLOPs)"
        )
    if budget_flops >= space.max_flops:
        return space.largest
    for within in (WITHIN, *_WIDER):
        arch = _search(policy, budget_flops, (1 - within) * budget_flops)
        if arch is not None:
            return arch
    raise AssertionError("the smallest subnet keeps every budget that is asked")


def decode_all(policy: GeneratorPolicy, budgets_flops: Sequence[float]) -> list[Arch]:
    """The archs for many budgets."""
    return [decode(policy, budget) for budget in budgets_flops]


def _search(policy: GeneratorPolicy, most_flops: float, least_flops: float) -> Arch | None:
    """The most probable arch between these FLOPs, or None if the beam leads to none.

    The generator is asked for the upper bound.
    """
    space, tail = policy.space, tail_of(policy.space)
    state = policy.begin([most_flops])
    archs, scores = np.zeros((1, len(space.decisions)), np.int64), np.zeros(1)
    ends: np.ndarray | None = None
    for number, place in enumerate(tail.decided):
        if place in tail.decisions and ends is None:
            flops = tail.flops(archs)
            ends = (flops <= most_flops) & (flops >= least_flops)
        logits, state = policy.step(state, place)
        total = scores[:, None] + log_softmax(logits)
        if ends is None:
            least, most = _reach(space, archs, tail.decided[number:])
            possible = (least <= most_flops) & (most >= least_flops)
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


def _reach(space: SearchSpace, archs: np.ndarray, undecided: Sequence[int]) -> np.ndarray:
    """The least and the most FLOPs behind each choice of the next decision: (2, prefixes, choices).

    FLOPs grow with every decision.
    """
    place, *rest = undecided
    count = len(space.decisions[place].choices)
    least = np.repeat(archs, count, axis=0)
    least[:, place] = np.tile(np.arange(count), len(archs))
    least[:, rest] = 0
    most = least.copy()
    most[:, rest] = [len(space.decisions[other].choices) - 1 for other in rest]
    return space.flops_rule.batch(np.concatenate([least, most])).reshape(2, len(archs), count)
