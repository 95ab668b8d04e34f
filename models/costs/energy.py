"""Millijoules of inference, by a table that somebody with a meter has written."""

from __future__ import annotations

from models.costs.cost import Cost
from models.costs.table import CostTable, tabulated
from models.space.search_space import SearchSpace


def energy(space: SearchSpace, table: CostTable | None) -> Cost:
    """In nanojoules. Raises ValueError without a table of millijoules."""
    return tabulated("energy_mj", "mJ", space, table)
