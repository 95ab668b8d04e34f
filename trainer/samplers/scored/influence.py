"""Influence: groups of which a multiply-add of training helps all groups most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.space.arch import Arch
from trainer.samplers.probe import Probe
from trainer.samplers.scored.base import AbstractTargetSampler

LEAST = 0.05
"""Of the mean influence: what a group counts as that helps less, or harms."""


class Influence(AbstractTargetSampler):
    """B is proportional to influence per FLOP.

    A group's influence is the product of its gradient with the mean gradient of all groups that
    are measured with it, on other images: to first order, by how much a step on it lowers the mean
    loss, the others' through the weights that they share included.
    """

    def scores(self, probe: Probe, archs: Sequence[Arch]) -> list[float]:
        return probe.influences(archs)

    def target(self, scores: Tensor) -> Tensor:
        flops = torch.tensor(self.groups) + self.overhead
        least = LEAST * scores.mean().clamp(min=1e-12)
        return torch.maximum(scores, least).log() - flops.log()
