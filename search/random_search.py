"""Random search: the best of so many random archs that use up the budget."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.samplers.candidates.base import arch_between

WINDOW = 0.97
"""Archs of at least this share of a budget compete for it, as the generator's answers do."""
DRAWS = 5
"""For each arch that is wanted."""


def random_search(
    space: SearchSpace,
    budget_flops: float,
    score: Callable[[Arch], float],
    evaluations: int,
    rng: torch.Generator,
) -> Arch:
    """The best of ``evaluations`` archs within the budget."""
    found = distinct_archs(space, budget_flops, evaluations, rng)
    return max(found, key=score)


def distinct_archs(
    space: SearchSpace, budget_flops: float, count: int, rng: torch.Generator
) -> list[Arch]:
    """So many different random archs within a budget, or as many as turn up soon.

    Those that use up the budget come first; a coarse space may have few of them.
    """
    drawn = dict.fromkeys(
        arch_between(space, round(WINDOW * budget_flops), int(budget_flops), rng)
        for _ in range(DRAWS * count)
    )
    return sorted(drawn, key=lambda arch: space.flops(arch) < WINDOW * budget_flops)[:count]
