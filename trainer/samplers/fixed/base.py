"""AbstractFixedSampler: the samplers that learn nothing, and so have no state."""

from __future__ import annotations

from typing import final

import torch

from trainer.samplers.base import AbstractSampler, SamplerState
from trainer.samplers.probe import Probe


class AbstractFixedSampler(AbstractSampler):
    """Draws from the same distribution in every step of a run."""

    @property
    @final
    def learns(self) -> bool:
        return False

    @final
    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        raise AssertionError(f"{type(self).__name__} does not learn")

    @final
    def state(self) -> SamplerState:
        return {}

    @final
    def load_state(self, state: SamplerState) -> None:
        assert not state, state
