"""Parameters of a subnet, BatchNorm's and biases included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from models.costs.cost import Cost
from models.costs.table import CostTable
from models.space.arch import Choice
from models.space.rule import Part, cost_rule
from models.space.search_space import SearchSpace
from models.space.sizes import Weight


def params(space: SearchSpace, table: CostTable | None) -> Cost:
    """Needs no table."""
    parts = [Part(w.decisions, partial(_elements, w), w.block) for w in space.weights]
    return Cost("params", "parameters", 1, space, cost_rule(space.decisions, parts))


def _elements(weight: Weight, arch: Mapping[str, Choice]) -> int:
    return math.prod(weight.shape_at(arch))
