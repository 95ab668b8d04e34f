"""Probability shift by measuring each group's loss drop, without the detour over the generator."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.probe import Probe
from trainer.samplers.shifting.base import AbstractShiftingSampler

FADE = 0.95
"""Of the running mean and variance of a group's drop, by times that it was measured."""

REACH = 2.0
"""Where the logit of a group ends whose drop stays twice the mean: e^2 times the others' odds."""

MARGIN = 2.0
"""Standard errors by which a group's drop has to differ from the others' before B moves."""

_LEAST = 4  # times measured before a group's variance says anything


class ShiftDirect(AbstractShiftingSampler):
    """Groups whose loss still drops gain probability, and the drop is what is measured.

    Eq. 5 maximizes the expected drop under B, sum_k p_k drop_k. Eq. 8 reaches it through the
    generator, where only the slope of the loss along the budget survives; this takes the losses
    of a few groups before and after, with sliced subnets and no gradient, which is also cheaper
    than two masked passes.

    A drop on one batch is mostly noise, and B must not follow noise: the probability that one
    group gains all others lose. So

    - the groups of an update are measured on the same images, and only their distance to the
      update's mean counts: what makes a batch easy is common to all;
    - every group is measured equally often, in random company;
    - a group's mean distance counts only as far as it lies beyond two of its standard errors;
    - it counts relative to the mean drop, at most once: early in a run all losses drop more;
    - logits decay, so that what noise moved returns. A group that is drawn more drops more, which
      is not a reason to draw it still more: the decay also has to win against that.

    That is exponentiated-gradient ascent on Eq. 5 with a normalized, shrunken gradient. Differs
    from the paper: see ``docs/deviations.md``.
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(
            space,
            options,
            partial(torch.optim.SGD, lr=options.learning_rate, weight_decay=1 / REACH),
        )
        moments = ("drop", "distance", "square", "weight", "squared_weight", "times")
        self.running.update({name: torch.zeros(len(self.groups)) for name in moments})

    def measure(
        self, probe: Probe, rng: torch.Generator
    ) -> tuple[Tensor | None, list[float | None]]:
        chosen = self.least_measured(self.running["times"], rng)
        drops = torch.zeros(len(chosen))
        for place, group in enumerate(chosen):
            arch = self.arch_of(group, probe)
            with torch.no_grad():
                drops[place] = self.drop(probe, arch)
        self._remember(chosen, drops)
        measured: list[float | None] = [None] * len(self.groups)
        for group, drop in zip(chosen, drops.tolist(), strict=True):
            measured[group] = drop
        direction = self._direction()
        return (None if direction is None else self.sign * direction), measured

    def drop(self, probe: Probe, arch: Arch) -> Tensor:
        """By how much a subnet's loss fell since the update before."""
        return probe.loss(arch, before=True) - probe.loss(arch, before=False)

    def _remember(self, chosen: list[int], drops: Tensor) -> None:
        """Running sums with weights that fade."""
        distances = drops - drops.mean()
        news = {
            "drop": drops,
            "distance": distances,
            "square": distances.square(),
            "weight": torch.ones(len(chosen)),
        }
        for name, value in news.items():
            old = self.running[name][chosen]
            self.running[name][chosen] = FADE * old + (1 - FADE) * value
        old = self.running["squared_weight"][chosen]
        self.running["squared_weight"][chosen] = FADE**2 * old + (1 - FADE) ** 2
        self.running["times"][chosen] += 1

    def _direction(self) -> Tensor | None:
        if self.running["times"].min() < _LEAST:
            return None
        weight = self.running["weight"]
        distance = self.running["distance"] / weight
        independent = self.running["squared_weight"] / weight.square()  # 1 / (number of drops)
        variance = (self.running["square"] / weight - distance.square()) / (1 - independent)
        # a few drops may happen to lie close together: no group is surer than groups are on average
        margin = MARGIN * (torch.maximum(variance, variance.mean()) * independent).sqrt()
        usual = torch.maximum((self.running["drop"] / weight).mean().abs(), margin.mean())
        beyond = (distance.abs() - margin).clamp(min=0) / usual.clamp(min=1e-12)
        return distance.sign() * beyond.clamp(max=1)
