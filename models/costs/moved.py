"""Bytes moved for one image: every weight read, every output written and read, once each.

Outputs of convolutions, linear layers and attention's two products, in single precision; what else
there is (normalization, activations, softmax) runs in place. A bound for hardware whose memory is
slower than its arithmetic; caches are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from models.costs.cost import Cost
from models.costs.table import CostTable
from models.space.arch import Choice
from models.space.rule import Part, cost_rule
from models.space.search_space import SearchSpace
from models.space.sizes import Product, Weight

_ELEMENT_BYTES = 4


def moved(space: SearchSpace, table: CostTable | None) -> Cost:
    """Needs no table."""
    parts = [
        *(Part(w.decisions, partial(_of_weight, w), w.block) for w in space.weights),
        *(Part(p.decisions, partial(_of_product, p), p.block) for p in space.products),
    ]
    return Cost("bytes", "bytes", 1, space, cost_rule(space.decisions, parts))


def _of_weight(weight: Weight, arch: Mapping[str, Choice]) -> int:
    shape = weight.shape_at(arch)
    outputs = 0 if weight.positions is None else shape[0] * weight.positions(arch)
    return _ELEMENT_BYTES * (math.prod(shape) + 2 * outputs)


def _of_product(product: Product, arch: Mapping[str, Choice]) -> int:
    """Half of both products: one gives a logit a head for each pair of tokens, one the values."""
    tokens, others, attended = (size(arch) for size in product.factors)
    logits = tokens * others * (attended // product.factors[-1].unit)
    return _ELEMENT_BYTES * (logits + tokens * attended)
