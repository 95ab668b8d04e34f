"""A supernet made up for tests of samplers: what each group still has to learn is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.samplers.base import AbstractSampler, Draw


@dataclass(frozen=True)
class SyntheticArch:
    """Stands for the arch that a generator would give for a budget."""

    budget_flops: Tensor

    def arch(self) -> SyntheticArch:
        return self


class SyntheticSupernet:
    """Group k's loss is 1 + exp(-n_k / needs_k) after n_k steps.

    ``shared``: the part of a step that trains all groups alike, as shared weights do. Between
    groups the loss is linear in the budget, so that it has a slope for the generator's path.
    """

    def __init__(self, sampler: AbstractSampler, needs: list[float], shared: float) -> None:
        self.groups = torch.tensor(sampler.groups, dtype=torch.float64)
        self._needs, self._shared = torch.tensor(needs, dtype=torch.float64), shared
        self._steps = torch.zeros(len(needs), dtype=torch.float64)

    def train(self, draws: list[Draw]) -> None:
        """One step: the groups of the draws learn."""
        for draw in draws:
            budget = draw.budget_flops
            group = len(self.groups) - 1
            if budget is not None:
                group = min(int(torch.searchsorted(self.groups, budget)), group)
            self._steps[group] += 1 - self._shared
            self._steps += self._shared / len(self.groups)

    def losses(self) -> Tensor:
        """Of every group, in nats."""
        return 1 + torch.exp(-self._steps / self._needs)


class SyntheticProbe:
    """Losses before and now. A batch makes all of them easier or harder, and each a little."""

    def __init__(
        self,
        groups: Tensor,
        before: Tensor,
        now: Tensor,
        *,
        noise: float = 0.0,
        common_noise: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> None:
        self._groups = groups

        def disturbed(losses: Tensor) -> Tensor:
            own = noise * torch.randn(len(losses), generator=rng, dtype=torch.float64)
            common = common_noise * torch.randn(1, generator=rng, dtype=torch.float64)
            return losses + own + common

        self._losses = {True: disturbed(before), False: disturbed(now)}

    def generate(self, budget_flops: Tensor) -> SyntheticArch:
        return SyntheticArch(budget_flops)

    def loss(self, arch: SyntheticArch, *, before: bool) -> Tensor:
        losses, budget = self._losses[before], arch.budget_flops
        right = int(torch.searchsorted(self._groups, budget.detach()))
        right = min(max(right, 1), len(losses) - 1)
        low, high = self._groups[right - 1], self._groups[right]
        return torch.lerp(losses[right - 1], losses[right], (budget - low) / (high - low))


def simulate(
    sampler: AbstractSampler,
    needs: list[float],
    *,
    updates: int,
    steps: int = 100,
    warm_up: int = 0,
    shared: float = 0.5,
    noise: float = 0.0,
    common_noise: float = 0.0,
    seed: int = 0,
) -> tuple[SyntheticSupernet, list[list[float]]]:
    """Train, and update the sampler every ``steps`` steps. The supernet, and B after every update.

    ``warm_up``: how many updates are left out at first, as a run's warm-up does.
    """
    rng = torch.Generator().manual_seed(seed)
    noise_rng = torch.Generator().manual_seed(seed + 1)
    net = SyntheticSupernet(sampler, needs, shared)
    history = []
    for update in range(warm_up + updates):
        before = net.losses()
        for _ in range(steps):
            net.train(sampler.draw(rng))
        if sampler.learns and update >= warm_up:
            probe = SyntheticProbe(
                net.groups,
                before,
                net.losses(),
                noise=noise,
                common_noise=common_noise,
                rng=noise_rng,
            )
            sampler.update(probe, rng)
        history.append(sampler.probabilities())
    return net, history
