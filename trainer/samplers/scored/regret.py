"""Regret: groups whose loss lies above what their neighbours promise are drawn more often."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from models.space.arch import Arch
from trainer.samplers.probe import Probe
from trainer.samplers.scored.base import AbstractTargetSampler


class Regret(AbstractTargetSampler):
    """Looks at the level of losses, where the paper looks at their drops.

    A group's regret is how far its loss lies above the lower convex hull of all groups' losses
    over log FLOPs: a dent that its neighbours on both sides have not. Losses are those of what is
    served (the average of the weights) on one fixed set of held-out images. B is proportional to
    1 + regret / mean regret; where there is none it is uniform.
    """

    def scores(self, probe: Probe, archs: Sequence[Arch]) -> list[float]:
        return [probe.level(arch) for arch in archs]

    def target(self, scores: Tensor) -> Tensor:
        flops = torch.tensor(self.groups, dtype=torch.float64)
        regret = scores - lower_hull(flops.log(), scores.double())
        usual = regret.mean().clamp(min=1e-6)
        return torch.log1p(regret / usual).float()


def lower_hull(x: Tensor, y: Tensor) -> Tensor:
    """The lower convex hull of points (x ascending), at each x: the same shape."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1 and _turns_down(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    below = y.clone()
    for left, right in pairwise(hull):
        between = slice(left, right + 1)
        share = (x[between] - x[left]) / (x[right] - x[left])
        below[between] = y[left] + share * (y[right] - y[left])
    return below


def _turns_down(x: Tensor, y: Tensor, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a]))
