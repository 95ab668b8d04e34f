"""The sandwich rule with in-place distillation (BigNAS, arXiv 2003.11142)."""

from __future__ import annotations

import torch

from models.space import SearchSpace
from trainer.probe import Probe
from trainer.samplers.base import AbstractSampler, Draw, SamplerOptions, SamplerState, group_budgets
from trainer.samplers.uniform_arch import uniform_arch


class Sandwich(AbstractSampler):
    """Largest, two random and smallest subnet in every step.

    All but the largest learn from the largest one's logits. A step costs about four times that
    of the other samplers: compare at equal time, not at equal steps.
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        self.space = space
        self.groups = group_budgets(space, options.groups)

    @property
    def learns(self) -> bool:
        return False

    def draw(self, rng: torch.Generator) -> list[Draw]:
        random = [Draw(arch=uniform_arch(self.space, rng), distil=True) for _ in range(2)]
        smallest = Draw(arch=self.space.smallest, distil=True)
        return [Draw(arch=self.space.largest), *random, smallest]

    def probabilities(self) -> list[float]:
        return []

    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        raise AssertionError("the sandwich rule does not learn a distribution")

    def state(self) -> SamplerState:
        return {}

    def load_state(self, state: SamplerState) -> None:
        assert not state
