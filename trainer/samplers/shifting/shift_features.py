"""Eq. 8 with directions: the one-hot of a group mixes budgets' features, not the budgets."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.probe import Probe
from trainer.samplers.shifting.base import AbstractShiftingSampler


class ShiftFeatures(AbstractShiftingSampler):
    """``shift`` through the features from which the generator reads a budget.

    A scalar budget has one slope. So, for the same noise, every gradient of B is the same vector or
    its negative: it can only say "larger" or "smaller". Here the generator's input is the
    one-hot times all groups' features (16 cosines), and B's gradient has as many directions. What
    the last decisions know of the budget (``models.generator.tail``) stays that of the drawn one.
    """

    keeps_archs = False

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(space, options, partial(torch.optim.Adam, lr=options.learning_rate))

    def measure(
        self, probe: Probe, rng: torch.Generator
    ) -> tuple[Tensor | None, list[float | None]]:
        one_hot = self.distribution.gumbel_one_hot(rng)
        group = int(one_hot.argmax())
        relaxed = probe.generate(torch.tensor(self.groups[group], dtype=torch.float64))
        losses: list[float] = []
        gradients: list[Tensor] = []
        for before in (True, False):
            loss, to_one_hot = probe.mixing_gradient(relaxed, self.groups, before=before)
            (gradient,) = torch.autograd.grad(
                one_hot, self.distribution.logits, to_one_hot.to(one_hot), retain_graph=before
            )
            losses.append(loss)
            gradients.append(gradient)
        drops: list[float | None] = [None] * len(self.groups)
        drops[group] = losses[0] - losses[1]
        return self.sign * (gradients[0] - gradients[1]), drops
