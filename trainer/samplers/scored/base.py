"""AbstractTargetSampler: B follows a score of each group, remembered over updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import final

import torch
from torch import Tensor

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.probe import Probe
from trainer.samplers.shifting.base import AbstractShiftingSampler

FADE = 0.7
"""Of the running mean of a group's score, by times that it was measured."""
PULL = 0.5
"""How far an update moves the logits of B towards their target."""


class AbstractTargetSampler(AbstractShiftingSampler):
    """At an update some groups are scored, those measured least often; B moves to the target.

    Until every group has a score, B stays as it is.
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(space, options, partial(torch.optim.SGD, lr=PULL))
        self.running.update({name: torch.zeros(len(self.groups)) for name in ("score", "times")})

    @property
    def overhead(self) -> float:
        """What a step's time has beside its subnet's FLOPs, as FLOPs for each image."""
        return self.options.step_flops + self.options.pass_flops

    @abstractmethod
    def scores(self, probe: Probe, archs: Sequence[Arch]) -> list[float]:
        """Of some groups, each stood for by an arch that the generator samples for it."""

    @abstractmethod
    def target(self, scores: Tensor) -> Tensor:
        """The logits that B should have, shape (groups,), from all groups' scores."""

    @final
    def measure(
        self, probe: Probe, rng: torch.Generator
    ) -> tuple[Tensor | None, list[float | None]]:
        score, times = self.running["score"], self.running["times"]
        chosen = self.least_measured(times, rng)
        found = self.scores(probe, [self.arch_of(group, probe) for group in chosen])
        measured: list[float | None] = [None] * len(self.groups)
        for group, value in zip(chosen, found, strict=True):
            old = FADE if times[group] else 0.0
            score[group] = old * score[group] + (1 - old) * value
            times[group] += 1
            measured[group] = value
        if not times.all():
            return None, measured
        target = self.target(score)
        return target - target.mean() - self.distribution.logits.detach(), measured
