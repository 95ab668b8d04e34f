"""Uniform over every decision's choices: what the paper argues against (Eq. 2, AutoFormer)."""

from __future__ import annotations

import torch

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.samplers.base import Draw
from trainer.samplers.fixed.base import AbstractFixedSampler


def uniform_arch(space: SearchSpace, rng: torch.Generator) -> Arch:
    """One arch, each decision on its own."""
    return space.from_indices(
        [int(torch.randint(len(d.choices), (), generator=rng)) for d in space.decisions]
    )


class UniformArch(AbstractFixedSampler):
    """No budgets: FLOPs pile up in the middle of the range (Remark 1).

    The generator learns from the resource loss alone.
    """

    keeps_archs = False

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        return [Draw(arch=uniform_arch(self.space, rng))]

    def probabilities(self) -> list[float]:
        return []
