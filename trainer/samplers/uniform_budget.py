"""Uniform over FLOPs groups, archs by the generator: the paper's own baseline (Fig. 4)."""

from __future__ import annotations

import torch

from models.space import SearchSpace
from trainer.probe import Probe
from trainer.samplers.base import (
    AbstractSampler,
    Draw,
    SamplerOptions,
    SamplerState,
    draw_budget,
    group_budgets,
)


class UniformBudget(AbstractSampler):
    """B stays uniform."""

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        self.space = space
        self.groups = group_budgets(space, options.groups)
        self._jitter = options.jitter

    @property
    def learns(self) -> bool:
        return False

    def draw(self, rng: torch.Generator) -> list[Draw]:
        group = int(torch.randint(len(self.groups), (), generator=rng))
        budget = draw_budget(self.space, self.groups, group, self._jitter, rng)
        return [Draw(budget_flops=budget, group=group)]

    def probabilities(self) -> list[float]:
        return [1 / len(self.groups)] * len(self.groups)

    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        raise AssertionError("a uniform distribution does not learn")

    def state(self) -> SamplerState:
        return {}

    def load_state(self, state: SamplerState) -> None:
        assert not state
