"""Milliseconds of inference, by a table that ``python -m models measure`` has written."""

from __future__ import annotations

from models.costs.cost import Cost
from models.costs.table import CostTable, tabulated
from models.space.search_space import SearchSpace


def latency(space: SearchSpace, table: CostTable | None) -> Cost:
    """In nanoseconds. Raises ValueError without a table of milliseconds."""
    return tabulated("latency_ms", "ms", space, table)
