"""AbstractFixedSampler: the samplers that learn nothing, and so have no state."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import torch

from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import AbstractSampler, Draw, SamplerState, group_budgets
from trainer.samplers.probe import Probe


class AbstractFixedSampler(AbstractSampler):
    """Draws from the same distribution in every step of a run."""

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        self.space = space
        self.groups = group_budgets(space, options.groups)
        self.options = options

    @property
    @final
    def learns(self) -> bool:
        return False

    @abstractmethod
    def draw(self, rng: torch.Generator) -> list[Draw]:
        """The subnets of one step, in the order in which they run."""

    @abstractmethod
    def probabilities(self) -> list[float]:
        """Of the groups, in their order. Empty where budgets are not drawn from groups."""

    @final
    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        raise AssertionError(f"{type(self).__name__} does not learn")

    @final
    def state(self) -> SamplerState:
        return {}

    @final
    def load_state(self, state: SamplerState) -> None:
        assert not state, state
