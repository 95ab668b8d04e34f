"""What a budget can count, by name. A new cost model is a file in this folder and a line here."""

from __future__ import annotations

from models.costs.cost import Cost
from models.costs.table import CostTable
from models.lookup import look_up
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
    cost = look_up(COSTS, name, "cost")(space, table)
    assert isinstance(cost, Cost)
    return cost
