"""A supernet made up for tests of samplers: what each group still has to learn is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.space.arch import Arch
from models.space.search_space import SearchSpace
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
        self._space = sampler.space
        self._needs, self._shared = torch.tensor(needs, dtype=torch.float64), shared
        self._steps = torch.zeros(len(needs), dtype=torch.float64)

    def train(self, draws: list[Draw]) -> None:
        """One step: the groups of the draws learn."""
        for draw in draws:
            flops = self._space.flops(draw.arch) if draw.arch else draw.budget_flops
            group = min(int(torch.searchsorted(self.groups, flops)), len(self.groups) - 1)
            self._steps[group] += 1 - self._shared
            self._steps += self._shared / len(self.groups)

    def losses(self) -> Tensor:
        """Of every group, in nats."""
        return 1 + torch.exp(-self._steps / self._needs)


class SyntheticProbe:
    """Losses before and now. A batch makes all of them easier or harder, and each a little."""

    def __init__(
        self,
        space: SearchSpace,
        groups: Tensor,
        before: Tensor,
        now: Tensor,
        *,
        noise: float = 0.0,
        common_noise: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> None:
        self._space, self._groups = space, groups

        def disturbed(losses: Tensor) -> Tensor:
            own = noise * torch.randn(len(losses), generator=rng, dtype=torch.float64)
            common = common_noise * torch.randn(1, generator=rng, dtype=torch.float64)
            return losses + own + common

        self._losses = {True: disturbed(before), False: disturbed(now)}

    def generate(self, budget_flops: Tensor) -> SyntheticArch:
        return SyntheticArch(budget_flops)

    def loss(self, arch: SyntheticArch | Arch, *, before: bool) -> Tensor:
        losses = self._losses[before]
        if isinstance(arch, SyntheticArch):
            budget = arch.budget_flops
        else:
            budget = torch.tensor(self._space.flops(arch), dtype=torch.float64)
        right = int(torch.searchsorted(self._groups, budget.detach()))
        right = min(max(right, 1), len(losses) - 1)
        low, high = self._groups[right - 1], self._groups[right]
        return torch.lerp(losses[right - 1], losses[right], (budget - low) / (high - low))

    def mixing_gradient(
        self, arch: SyntheticArch, budgets: Sequence[float], *, before: bool
    ) -> tuple[float, Tensor]:
        of = [SyntheticArch(torch.tensor(float(b), dtype=torch.float64)) for b in budgets]
        each = torch.stack([self.loss(one, before=before) for one in of])
        return float(self.loss(arch, before=before)), each

    def level(self, arch: SyntheticArch | Arch) -> float:
        return float(self.loss(arch, before=False))

    def influences(self, archs: Sequence[SyntheticArch | Arch]) -> list[float]:
        """By how much each fell since the update before: to first order, what a step buys."""
        return [float(self.loss(a, before=True) - self.loss(a, before=False)) for a in archs]


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
                sampler.space,
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
