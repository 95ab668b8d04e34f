"""Which subnets to time, so that their parts can be told apart. No torch."""

from __future__ import annotations

import numpy as np

from models.measure.fit import Forms
from models.measure.layers import FEATURES
from models.space.arch import Arch
from models.space.search_space import SearchSpace

_POOL = 2000
_PRIOR, _NOISE = 0.3, 0.02
"""How far a form's time may be from its share of the work, and a timing from the truth."""


def spread_archs(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Arch]:
    """Different archs of all sizes: uniform choices alone are all of a middle size.

    Each has a level of its own, around which its choices lie. Fewer where the space has fewer.
    """
    most = np.array([len(decision.choices) - 1 for decision in space.decisions])
    found: dict[Arch, None] = {}
    for _ in range(4 * count):
        level = rng.uniform(-0.2, 1.2)
        around = np.clip(rng.normal(level, 0.35, len(most)), 0, 1)
        found[space.from_indices(np.rint(around * most).astype(np.int64))] = None
        if len(found) == count:
            break
    return list(found)


def chosen_archs(forms: Forms, count: int, rng: np.random.Generator) -> list[Arch]:
    """The archs that tell most: each is the one of a pool whose time is least known so far.

    How well an arch's time is known depends on which archs were timed and not on how long they
    took: so it is in a linear model (a Bayesian one, like ``fit``).
    """
    pool = spread_archs(forms.space, _POOL, rng)
    counts = forms.counts(pool)
    work = forms.features() @ _WORK
    share = counts * work
    share = _PRIOR * share / share.sum(axis=1, keepdims=True)
    known = np.zeros((0, share.shape[1]))  # rows: what each arch that is chosen has told
    variance = (share**2).sum(axis=1)
    chosen: list[int] = []
    for _ in range(min(count, len(pool))):
        best = int(np.argmax(variance))
        chosen.append(best)
        told = share[best] - (known.T @ (known @ share[best]) if len(known) else 0)
        told = told / np.sqrt(max(told @ share[best], 0) + _NOISE**2)
        known = np.vstack([known, told])
        variance = variance - (share @ told) ** 2
        variance[best] = -np.inf
    return [pool[index] for index in chosen]


_WORK = np.array(
    [{"depthwise": 8.0, "outputs": 20.0, "weights": 0.0}.get(f, 1.0) for f in FEATURES]
)
"""Roughly what each feature costs beside a multiply-add, before anything has been timed."""
