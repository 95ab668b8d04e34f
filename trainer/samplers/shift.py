"""Probability shift through the generator: Eq. 4-8 and Algorithm 2 of the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from models.space import SearchSpace
from trainer.probe import Probe
from trainer.samplers.base import (
    AbstractSampler,
    Draw,
    SamplerOptions,
    SamplerState,
    draw_budget,
    group_budgets,
)
from trainer.samplers.distribution import GroupDistribution


class Shift(AbstractSampler):
    """The paper's estimator: the gradient of the loss drop reaches B through the generator.

    One group is drawn as a straight-through one-hot, its budget goes through the generator and
    the masks, and the loss of the resulting subnet is differentiated for B with the weights of
    now and of the update before: same arch, same batch, same noise.

    Differs from the paper: Algorithm 2 as printed steps along grad(t-1) - grad(t), which takes
    probability from groups whose loss still drops; the prose and Fig. 5 want the opposite, and
    that is the default. ``as_printed`` keeps the printed sign (``docs/deviations.md``).
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        self.space = space
        self.groups = group_budgets(space, options.groups)
        self._options = options
        self._distribution = GroupDistribution(options.groups, options)

    @property
    def learns(self) -> bool:
        return True

    def draw(self, rng: torch.Generator) -> list[Draw]:
        group = self._distribution.draw(rng)
        budget = draw_budget(self.space, self.groups, group, self._options.jitter, rng)
        return [Draw(budget_flops=budget, group=group)]

    def probabilities(self) -> list[float]:
        return self._distribution.probabilities().tolist()

    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        one_hot = self._distribution.gumbel_one_hot(rng)
        budget = one_hot.double() @ torch.tensor(self.groups, dtype=torch.float64)
        relaxed = probe.generate(budget)
        losses: list[float] = []
        gradients: list[Tensor] = []
        for before in (True, False):
            loss = probe.loss(relaxed, before=before)
            (gradient,) = torch.autograd.grad(loss, self._distribution.logits, retain_graph=before)
            losses.append(float(loss.detach()))
            gradients.append(gradient)
            del loss  # or its graph would stay while the second is built
        printed = gradients[0] - gradients[1]
        self._distribution.step(printed if self._options.as_printed else -printed)
        drops: list[float | None] = [None] * len(self.groups)
        drops[int(one_hot.argmax())] = losses[0] - losses[1]
        return drops

    def state(self) -> SamplerState:
        return self._distribution.state()

    def load_state(self, state: SamplerState) -> None:
        self._distribution.load_state(state)
