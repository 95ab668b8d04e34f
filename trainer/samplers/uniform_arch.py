"""Uniform over every decision's choices: what the paper argues against (Eq. 2, AutoFormer)."""

from __future__ import annotations

import torch

from models.arch import Arch
from models.space import SearchSpace
from trainer.probe import Probe
from trainer.samplers.base import AbstractSampler, Draw, SamplerOptions, SamplerState, group_budgets


def uniform_arch(space: SearchSpace, rng: torch.Generator) -> Arch:
    """One arch, each decision on its own."""
    return space.from_indices(
        [int(torch.randint(len(d.choices), (), generator=rng)) for d in space.decisions]
    )


class UniformArch(AbstractSampler):
    """No budgets: FLOPs pile up in the middle of the range (Remark 1).

    The generator learns from the resource loss alone.
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        self.space = space
        self.groups = group_budgets(space, options.groups)

    @property
    def learns(self) -> bool:
        return False

    def draw(self, rng: torch.Generator) -> list[Draw]:
        return [Draw(arch=uniform_arch(self.space, rng))]

    def probabilities(self) -> list[float]:
        return []

    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        raise AssertionError("a uniform distribution does not learn")

    def state(self) -> SamplerState:
        return {}

    def load_state(self, state: SamplerState) -> None:
        assert not state
