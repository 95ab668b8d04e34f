"""Uniform over FLOPs groups, archs by the generator: the paper's own baseline (Fig. 4)."""

from __future__ import annotations

import torch

from trainer.samplers.base import Draw
from trainer.samplers.fixed.base import AbstractFixedSampler


class UniformBudget(AbstractFixedSampler):
    """B stays uniform."""

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        group = int(torch.randint(len(self.groups), (), generator=rng))
        return [self.draw_in(group, rng)]

    def probabilities(self) -> list[float]:
        return [1 / len(self.groups)] * len(self.groups)
