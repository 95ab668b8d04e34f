"""A tilt that learns what a multiply-add buys: the answer to a compute budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.probe import Probe
from trainer.samplers.scored.base import AbstractTargetSampler

MOST = 6.0
"""The steepest tilt: one end is drawn e^6 times as often as the other, but for the floor."""


class LearnedTilt(AbstractTargetSampler):
    """B is proportional to exp(tilt x), x from 0 (the smallest group) to 1, and the tilt learns.

    Under a compute budget a distribution p is worth U(p) = sum_k p_k I_k / sum_k p_k FLOPs_k: what
    its steps buy for what they cost, with I_k the influence of group k (``influence``). An update
    moves the tilt along the slope of log U, by ``learning_rate`` at most:

        d log U / d tilt = cov_p(x, I) / mean_p(I) - cov_p(x, FLOPs) / mean_p(FLOPs)

    One number is learned from all groups' influences, so that noise averages out; a distribution
    with a number for each group (``influence``) has as much noise as groups.
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(space, options)
        self.running["tilt"] = torch.zeros(())

    def scores(self, probe: Probe, archs: Sequence[Arch]) -> list[float]:
        return probe.influences(archs)

    def target(self, scores: Tensor) -> Tensor:
        x = torch.linspace(0, 1, len(self.groups))
        p = self.distribution.probabilities().detach()
        flops = torch.tensor(self.groups) + self.overhead
        slope = _relative_slope(p, x, scores.clamp(min=0)) - _relative_slope(p, x, flops)
        tilt = self.running["tilt"]
        tilt += self.options.learning_rate * slope.clamp(-1, 1)
        tilt.clamp_(-MOST, MOST)
        return tilt * x


def _relative_slope(p: Tensor, x: Tensor, values: Tensor) -> Tensor:
    """The slope of log mean_p(values) along a tilt: cov_p(x, values) / mean_p(values)."""
    mean = (p * values).sum()
    return (p * (x - (p * x).sum()) * values).sum() / mean.clamp(min=1e-12)
