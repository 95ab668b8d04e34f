"""What a budget can count, by name. A new cost model is a file in this folder and a line here."""

from __future__ import annotations

import difflib
import importlib

from models.costs.cost import Cost
from models.costs.table import CostTable
from models.space.search_space import SearchSpace

COSTS: dict[str, str] = {
    "bytes": "models.costs.moved:moved",
    "energy_mj": "models.costs.energy:energy",
    "flops": "models.costs.flops:flops",
    "latency_ms": "models.costs.latency:latency",
    "params": "models.costs.params:params",
}
"""Name -> ``module:function``; the function takes a space and a table or None, and gives a cost."""


def get_cost(name: str, space: SearchSpace, table: CostTable | None = None) -> Cost:
    """The cost model called ``name`` for a space.

    Raises ValueError naming those there are, and where a table is needed that is not there.
    """
    if name not in COSTS:
        near = difflib.get_close_matches(name, COSTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no cost {name!r}; {hint}there are: {', '.join(sorted(COSTS))}")
    module, _, function = COSTS[name].partition(":")
    cost = getattr(importlib.import_module(module), function)(space, table)
    assert isinstance(cost, Cost)
    return cost
