"""The layers of a space, as latency sees them. No torch.

Two layers with the same weights' shapes at the same numbers of positions take as long, wherever
they stand: the blocks of a ViT, the later blocks of a stage. What a layer is under an arch is its
*form*; the unknowns of a latency table are the milliseconds of each form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.space.arch import Choice
from models.space.describe import layer_of
from models.space.search_space import SearchSpace
from models.space.sizes import Block, Product, Weight

Operator = tuple[str, tuple[int, ...], int]
"""Its kind, the sizes of its weight, its positions."""
Form = tuple[Operator, ...]

KINDS = ("dense", "depthwise", "pointwise", "product")
FEATURES = (*KINDS, "outputs", "weights", "operators")


@dataclass(frozen=True, eq=False)
class Layer:
    """A part of the network: its operators, the decisions that it depends on, its block."""

    name: str
    costs: tuple[Weight | Product, ...]
    decisions: tuple[str, ...]
    block: Block | None

    def form(self, arch: Mapping[str, Choice]) -> Form:
        """What it is under an arch; empty where it is left out."""
        if self.block is not None and not self.block.present(arch):
            return ()
        forms = (_operator(cost, arch) for cost in self.costs)
        return tuple(form for form in forms if form[2])


def layers_of(space: SearchSpace) -> list[Layer]:
    """All layers that compute something, in order; their decisions in the space's order."""
    found: dict[str, list[Weight | Product]] = {}
    for cost in (*space.weights, *space.products):
        if isinstance(cost, Product) or cost.positions is not None:
            found.setdefault(layer_of(cost.name), []).append(cost)
    layers = []
    for name, costs in found.items():
        blocks = {cost.block for cost in costs}
        assert len(blocks) == 1, f"{name} is dropped as a whole, or not at all"
        (block,) = blocks
        names = {n for cost in costs for n in cost.decisions}
        names |= set() if block is None else {block.depth}
        ordered = tuple(d.name for d in space.decisions if d.name in names)
        layers.append(Layer(name, tuple(costs), ordered, block))
    return layers


def all_forms(space: SearchSpace, layer: Layer) -> np.ndarray:
    """Its form for all choices of its decisions: objects, one axis a decision."""
    axes = [space.decision[name].choices for name in layer.decisions]
    forms = np.empty([len(choices) for choices in axes], object)
    for index in itertools.product(*(range(n) for n in forms.shape)):
        chosen = (choices[i] for choices, i in zip(axes, index, strict=True))
        forms[index] = layer.form(dict(zip(layer.decisions, chosen, strict=True)))
    return forms


def features(form: Form) -> np.ndarray:
    """What it does: multiply-adds by kind, elements written, of weights; operators. By FEATURES."""
    counts = np.zeros(len(FEATURES))
    for kind, sizes, positions in form:
        elements = math.prod(sizes)
        counts[KINDS.index(kind)] += elements * positions
        if kind != "product":
            counts[len(KINDS)] += sizes[0] * positions
            counts[len(KINDS) + 1] += elements
        counts[len(KINDS) + 2] += 1
    return counts


def _operator(
    cost: Weight | Product, arch: Mapping[str, Choice]
) -> tuple[str, tuple[int, ...], int]:
    if isinstance(cost, Product):
        return "product", tuple(size(arch) for size in cost.factors), 1
    assert cost.positions is not None
    shape = cost.shape_at(arch)
    positions = cost.positions(arch)
    if math.prod(shape[2:]) == 1:
        return "pointwise", shape[:2], positions
    return ("depthwise" if shape[1] == 1 else "dense"), shape, positions
