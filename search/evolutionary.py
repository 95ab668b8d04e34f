"""Evolutionary search, as the paper's rivals do it in their second stage (SPOS, AutoFormer)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from search.random_search import distinct_archs
from trainer.evolution import child

PARENTS = 10


def evolutionary_search(
    space: SearchSpace,
    budget_flops: float,
    score: Callable[[Arch], float],
    evaluations: int,
    rng: torch.Generator,
) -> Arch:
    """The best arch within the budget after ``evaluations`` of them.

    A third of them are random; then the ten best so far are mutated and crossed in turn, and what
    keeps the budget is tried.
    """
    population = distinct_archs(space, budget_flops, max(evaluations // 3, 2), rng)[:evaluations]
    tried = {arch: score(arch) for arch in population}
    misses = 0
    while len(tried) < evaluations and misses < 20 * evaluations:
        parents = sorted(tried, key=tried.__getitem__, reverse=True)[:PARENTS]
        arch = child(space, parents, rng, cross=bool(len(tried) % 2))
        if arch in tried or space.flops(arch) > budget_flops:
            misses += 1
            continue
        tried[arch] = score(arch)
    return max(tried, key=tried.__getitem__)
