"""Cost: what a budget counts. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from models.space.arch import Arch
from models.space.rule import CostRule
from models.space.search_space import SearchSpace


@dataclass(frozen=True, eq=False)
class Cost:
    """What every arch of a space costs, in whole numbers: FLOPs, bytes, nanoseconds.

    ``unit``: what people write it in, ``scale`` whole numbers each. The generator, its answers and
    its loss know the whole numbers alone, so that an answer is within its budget to the last one.
    """

    name: str
    unit: str
    scale: int
    space: SearchSpace
    rule: CostRule

    def of(self, arch: Arch) -> int:
        """What an arch costs."""
        return int(self.rule.batch(self.space.indices(arch)[None])[0])

    def value(self, whole: float) -> float:
        """Whole numbers in ``unit``."""
        return whole / self.scale

    def written(self, whole: float) -> str:
        """For people, exactly: ``3,250,048 FLOPs``, ``12.403 ms``."""
        return f"{self.value(whole):,.15g} {self.unit}"

    def even(self, count: int) -> list[float]:
        """Budgets, evenly spaced from the least to the most."""
        return [self.min + (self.max - self.min) * i / (count - 1) for i in range(count)]

    @cached_property
    def cheapest(self) -> Arch:
        """Where no other choice of one decision is cheaper; budgets begin here.

        The smallest arch, unless a larger choice was measured to cost less.
        """
        here = self.space.indices(self.space.smallest)
        counts = [len(decision.choices) for decision in self.space.decisions]
        while True:
            costs = self.rule.costs_of_choices(here[None])[0]
            better, start = here.copy(), 0
            for place, count in enumerate(counts):
                own = costs[start : start + count]
                start += count
                if own.min() < own[here[place]]:
                    better[place] = own.argmin()
                    break
            else:
                return self.space.from_indices(here)
            here = better

    @cached_property
    def min(self) -> int:
        """Of the cheapest arch: the least budget."""
        return self.of(self.cheapest)

    @cached_property
    def max(self) -> int:
        """Of the largest arch, which answers every budget from here on."""
        return self.of(self.space.largest)
