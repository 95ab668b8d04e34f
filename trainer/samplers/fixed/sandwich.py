"""The sandwich rule with in-place distillation (BigNAS, arXiv 2003.11142)."""

from __future__ import annotations

import torch

from trainer.samplers.base import Draw
from trainer.samplers.fixed.base import AbstractFixedSampler
from trainer.samplers.fixed.uniform_arch import uniform_arch


class Sandwich(AbstractFixedSampler):
    """Largest, two random and smallest subnet in every step.

    All but the largest learn from the largest one's logits. A step costs about four times that
    of the other samplers: compare at equal time, not at equal steps.
    """

    keeps_archs = False

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        random = [Draw(arch=uniform_arch(self.space, rng), distil=True) for _ in range(2)]
        smallest = Draw(arch=self.space.smallest, distil=True)
        return [Draw(arch=self.space.largest), *random, smallest]

    def probabilities(self) -> list[float]:
        return []
