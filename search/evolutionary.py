"""Evolutionary search, as the paper's rivals do it in their second stage (SPOS, AutoFormer)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from search.random_search import distinct_archs

PARENTS = 10
MUTATION = 0.2
"""Probability with which a mutation draws a decision anew."""


def evolutionary_search(
    space: SearchSpace,
    budget_flops: float,
    score: Callable[[Arch], float],
    evaluations: int,
    rng: torch.Generator,
    first: Arch | None = None,
) -> Arch:
    """The best arch within the budget after ``evaluations`` of them.

    A third of them are random; then the ten best so far are mutated and crossed in turn, and what
    keeps the budget is tried. ``first``: tried before all others, such as the generator's answer.
    """
    population = [] if first is None else [first]
    population += distinct_archs(space, budget_flops, max(evaluations // 3, 2), rng)
    population = list(dict.fromkeys(population))[:evaluations]
    tried = {arch: score(arch) for arch in population}
    misses = 0
    while len(tried) < evaluations and misses < 20 * evaluations:
        parents = sorted(tried, key=tried.__getitem__, reverse=True)[:PARENTS]
        child = _child(space, parents, rng, cross=bool(len(tried) % 2))
        if child in tried or space.flops(child) > budget_flops:
            misses += 1
            continue
        tried[child] = score(child)
    return max(tried, key=tried.__getitem__)


def _child(space: SearchSpace, parents: list[Arch], rng: torch.Generator, *, cross: bool) -> Arch:
    """Of one parent with some decisions drawn anew, or of two parents' decisions."""

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=rng))

    mother, father = (space.indices(parents[pick(len(parents))]) for _ in range(2))
    chance = torch.rand(len(mother), generator=rng).tolist()
    anew = [pick(len(decision.choices)) for decision in space.decisions]
    if cross:
        return space.from_indices(
            a if c < 0.5 else b for a, b, c in zip(mother, father, chance, strict=True)
        )
    return space.from_indices(
        new if c < MUTATION else a for a, new, c in zip(mother, anew, chance, strict=True)
    )
