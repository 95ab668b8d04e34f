"""Evolution: new archs out of those that did best, within no budget and over all sizes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from models.space.arch import Arch
from models.space.search_space import SearchSpace

MUTATION = 0.2
"""Probability with which a mutation draws a decision anew."""
MISSES = 20
"""Children in vain, for each that is wanted, after which a space counts as used up."""


def children(
    space: SearchSpace,
    parents: Sequence[Arch],
    known: Collection[Arch],
    count: int,
    rng: torch.Generator,
) -> list[Arch]:
    """So many archs that are not ``known``, or fewer where no more are found.

    They are mutations of one parent and crosses of two, in turn.
    """
    found: dict[Arch, None] = {}
    for turn in range(MISSES * count):
        if len(found) == count:
            break
        one = child(space, parents, rng, cross=bool(turn % 2))
        if one not in known:
            found[one] = None
    return list(found)


def child(
    space: SearchSpace, parents: Sequence[Arch], rng: torch.Generator, *, cross: bool
) -> Arch:
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
