"""Probability shift through the generator: Eq. 4-8 and Algorithm 2 of the paper."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.probe import Probe
from trainer.samplers.shifting.base import AbstractShiftingSampler


class Shift(AbstractShiftingSampler):
    """The paper's estimator: the gradient of the loss drop reaches B through the generator.

    One group is drawn as a straight-through one-hot, its budget goes through the generator and
    the masks, and the loss of the resulting subnet is differentiated for B with the weights of
    now and of the update before: same arch, same batch, same noise. B moves by Adam.

    Differs from the paper: Algorithm 2 as printed steps along grad(t-1) - grad(t), which takes
    probability from groups whose loss still drops; the prose and Fig. 5 want the opposite, and
    that is the default. ``as_printed`` keeps the printed sign (``docs/deviations.md``).
    """

    keeps_archs = False

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(space, options, partial(torch.optim.Adam, lr=options.learning_rate))

    def measure(
        self, probe: Probe, rng: torch.Generator
    ) -> tuple[Tensor | None, list[float | None]]:
        one_hot = self.distribution.gumbel_one_hot(rng)
        budget = one_hot.double() @ torch.tensor(self.groups, dtype=torch.float64)
        relaxed = probe.generate(budget)
        losses: list[float] = []
        gradients: list[Tensor] = []
        for before in (True, False):
            loss = probe.loss(relaxed, before=before)
            (gradient,) = torch.autograd.grad(loss, self.distribution.logits, retain_graph=before)
            losses.append(float(loss.detach()))
            gradients.append(gradient)
            del loss  # or its graph would stay while the second is built
        drops: list[float | None] = [None] * len(self.groups)
        drops[int(one_hot.argmax())] = losses[0] - losses[1]
        return self.sign * (gradients[0] - gradients[1]), drops
