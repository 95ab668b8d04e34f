"""Uniform over FLOPs groups, archs by the generator: the paper's own baseline (Fig. 4)."""

from __future__ import annotations

import torch

from trainer.samplers.base import Draw, draw_budget
from trainer.samplers.fixed import AbstractFixedSampler


class UniformBudget(AbstractFixedSampler):
    """B stays uniform."""

    def draw(self, rng: torch.Generator) -> list[Draw]:
        group = int(torch.randint(len(self.groups), (), generator=rng))
        budget = draw_budget(self.space, self.groups, group, self.options.jitter, rng)
        return [Draw(budget_flops=budget, group=group)]

    def probabilities(self) -> list[float]:
        return [1 / len(self.groups)] * len(self.groups)
