"""One arch, in every step: what trains a subnet alone (``trainer.run --arch``)."""

from __future__ import annotations

import torch

from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import Draw
from trainer.samplers.fixed.base import AbstractFixedSampler


class FixedArch(AbstractFixedSampler):
    """``sampler_options.archs`` has the one arch."""

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(space, options)
        if len(self.archs) != 1:
            raise ValueError(
                f"the sampler fixed-arch trains one arch, sampler_options.archs has "
                f"{len(self.archs)}; give it with --arch"
            )

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        return [Draw(arch=self.archs[0], group=0)]

    def probabilities(self) -> list[float]:
        return [1.0]
