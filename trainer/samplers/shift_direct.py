"""Probability shift by measuring each group's loss drop, without the detour over the generator."""

from __future__ import annotations

import torch

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

MEMORY = 0.9
"""Of the running mean of a group's drop: one update measures only a few groups, on one batch."""


class ShiftDirect(AbstractSampler):
    """Groups whose loss still drops gain probability, and the drop is what is measured.

    Eq. 5 maximizes the expected drop under B, sum_k p_k drop_k. Its gradient for the logits is
    p_k (drop_k - mean drop). Eq. 8 reaches it through the generator, where only the slope of the
    loss along the budget survives; this takes the losses of a few groups before and after, with
    sliced subnets and no gradient, which is also cheaper than two masked passes.

    Differs from the paper: see ``docs/deviations.md``.
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        self.space = space
        self.groups = group_budgets(space, options.groups)
        self._options = options
        self._distribution = GroupDistribution(options.groups, options)
        self._drops = torch.zeros(options.groups)
        self._weights = torch.zeros(options.groups)

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
        count = min(self._options.groups_per_update, len(self.groups))
        measured: list[float | None] = [None] * len(self.groups)
        for group in torch.randperm(len(self.groups), generator=rng)[:count].tolist():
            budget = torch.tensor(float(self.groups[group]), dtype=torch.float64)
            arch = probe.generate(budget).arch()
            with torch.no_grad():
                drop = float(probe.loss(arch, before=True) - probe.loss(arch, before=False))
            measured[group] = drop
            self._drops[group] = MEMORY * self._drops[group] + (1 - MEMORY) * drop
            self._weights[group] = MEMORY * self._weights[group] + (1 - MEMORY)
        if bool((self._weights > 0).all()):
            drops = self._drops / self._weights
            p = self._distribution.probabilities().detach()
            gain = p * (drops - (p * drops).sum())
            self._distribution.step(gain if self._options.as_printed else -gain)
        return measured

    def state(self) -> SamplerState:
        own = {"drops": self._drops.clone(), "weights": self._weights.clone()}
        return {**self._distribution.state(), **own}

    def load_state(self, state: SamplerState) -> None:
        self._distribution.load_state(state)
        self._drops.copy_(state["drops"])
        self._weights.copy_(state["weights"])
