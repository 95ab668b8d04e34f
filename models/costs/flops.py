"""FLOPs: multiply-adds for one image."""

from __future__ import annotations

from functools import lru_cache

from models.costs.cost import Cost
from models.costs.table import CostTable
from models.space.search_space import SearchSpace


@lru_cache(maxsize=64)
def flops_cost(space: SearchSpace) -> Cost:
    """The rule is in ``models.space.flops``."""
    return Cost("flops", "FLOPs", 1, space, space.flops_rule)


def flops(space: SearchSpace, table: CostTable | None) -> Cost:
    """Needs no table."""
    return flops_cost(space)
