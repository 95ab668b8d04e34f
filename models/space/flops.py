"""FLOPs of a subnet. One multiply-add is one FLOP, as in the paper and the field.

The rule: **a weight costs its elements times the positions it is applied at**; attention adds its
two products between activations. Counted: convolutions, linear layers, attention products. Not
counted: bias, normalization, activation, softmax, residual sums.

Each depends on a few decisions only, so a space's FLOPs are a ``CostRule``: exact for archs,
differentiable for policies. Eq. 10 of the paper adds a cost per decision instead; a ViT's cost is a
product of decisions (embedding x heads x depth), for which that is wrong. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from models.space.arch import Choice
from models.space.rule import CostRule, Part, cost_rule
from models.space.sizes import Decision, Product, Weight


def weight_flops(weight: Weight, arch: Mapping[str, Choice]) -> int:
    """Elements times positions, whether or not its block is there."""
    if weight.positions is None:
        return 0
    elements = 1
    for size in weight.shape:
        elements *= size(arch)
    return elements * weight.positions(arch)


def product_flops(product: Product, arch: Mapping[str, Choice]) -> int:
    """The product of its sizes, whether or not its block is there."""
    count = 1
    for size in product.factors:
        count *= size(arch)
    return count


def flops_rule(
    decisions: tuple[Decision, ...], weights: Sequence[Weight], products: Sequence[Product]
) -> CostRule:
    """The multiply-adds of every arch of a space."""
    of_weights = [
        Part(w.decisions, partial(weight_flops, w), w.block)
        for w in weights
        if w.positions is not None
    ]
    of_products = [Part(p.decisions, partial(product_flops, p), p.block) for p in products]
    return cost_rule(decisions, [*of_weights, *of_products])
