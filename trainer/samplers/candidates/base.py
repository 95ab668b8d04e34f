"""AbstractCandidateSampler: archs are tried on held-out images, and some are kept for training."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import AbstractSampler, Draw, SamplerState
from trainer.samplers.fixed.uniform_arch import uniform_arch
from trainer.samplers.probe import Probe

TRIED = 4
"""Archs that are tried in a group at an update."""

STARTS = 30
"""Archs that a random one of a group's FLOPs is sought from."""


class AbstractCandidateSampler(AbstractSampler):
    """Groups are drawn uniformly; a group's arch is one that was kept for it, or a random one.

    The methods of this kind try candidates before every step. Here they are tried at updates
    (``shift_every``), a few groups at each, on one held-out batch, and what is kept trains until
    the group's next turn: the same choice at a fraction of the cost.
    """

    size = 1
    """Archs kept for a group."""

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(space, options)
        shape = (len(self.groups), self.size)
        self.running = {
            "kept": torch.full((*shape, len(space.decisions)), -1, dtype=torch.int64),
            "times": torch.zeros(len(self.groups)),
        }

    @abstractmethod
    def keep(self, archs: list[Arch], losses: list[float]) -> list[Arch]:
        """Which of a group's archs train, at most ``size``; losses on the same images."""

    def propose(self, group: int, rng: torch.Generator) -> list[Arch]:
        """What is tried at an update beside what was kept."""
        return [self.random_arch(group, rng) for _ in range(TRIED)]

    def share(self, progress: float) -> float:
        """Of draws that are archs which were kept; the others are random ones of the group."""
        del progress
        return 1.0

    @property
    @final
    def learns(self) -> bool:
        return True

    def probabilities(self) -> list[float]:
        return [1 / len(self.groups)] * len(self.groups)

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        group = int(torch.randint(len(self.groups), (), generator=rng))
        kept = self.kept(group)
        if kept and float(torch.rand((), generator=rng)) < self.share(progress):
            arch = kept[int(torch.randint(len(kept), (), generator=rng))]
        else:
            arch = self.random_arch(group, rng)
        return [Draw(arch=arch, group=group)]

    @final
    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        measured: list[float | None] = [None] * len(self.groups)
        for group in self.least_measured(self.running["times"], rng):
            archs = list(dict.fromkeys([*self.kept(group), *self.propose(group, rng)]))
            with torch.no_grad():
                losses = [float(probe.loss(arch, before=False)) for arch in archs]
            rows = [self.space.indices(arch) for arch in self.keep(archs, losses)]
            self.running["kept"][group] = -1
            for place, row in enumerate(rows):
                self.running["kept"][group, place] = torch.from_numpy(row)
            self.running["times"][group] += 1
            measured[group] = min(losses)
        return measured

    @final
    def kept(self, group: int) -> list[Arch]:
        """What was kept for a group; none at first."""
        rows = self.running["kept"][group]
        return [self.space.from_indices(row.tolist()) for row in rows if row[0] >= 0]

    def random_arch(self, group: int, rng: torch.Generator) -> Arch:
        """A random arch of a group's FLOPs; of all sizes where there are no groups."""
        if self.archs:
            return self.archs[group]
        low = self.groups[group - 1] if group else self.space.min_flops
        return arch_between(self.space, low, self.groups[group], rng)

    @final
    def state(self) -> SamplerState:
        return {name: tensor.clone() for name, tensor in self.running.items()}

    @final
    def load_state(self, state: SamplerState) -> None:
        for name, tensor in self.running.items():
            tensor.copy_(state[name])


def arch_between(space: SearchSpace, low: int, high: int, rng: torch.Generator) -> Arch:
    """A random arch of ``low`` to ``high`` FLOPs: a uniform one, changed until it is.

    One random decision after another moves towards the range. One that passes over it is given
    up for another. Where ``STARTS`` do, the space has little or nothing in the range, and the
    answer is the largest below it that they came to.
    """
    below: list[Arch] = []
    for _ in range(STARTS):
        arch = uniform_arch(space, rng)
        was_below = space.flops(arch) < low
        while not low <= space.flops(arch) <= high:
            if (space.flops(arch) < low) != was_below:
                break
            arch = _moved(space, arch, 1 if was_below else -1, rng)
        else:
            return arch
        while space.flops(arch) > high:
            arch = _moved(space, arch, -1, rng)
        below.append(arch)
    return max(below, key=space.flops)


def _moved(space: SearchSpace, arch: Arch, by: int, rng: torch.Generator) -> Arch:
    """The arch with one random decision that changes its FLOPs moved up or down by one choice."""
    indices = torch.from_numpy(space.indices(arch))
    flops = space.flops(arch)
    for place in torch.randperm(len(indices), generator=rng).tolist():
        choice = int(indices[place]) + by
        if 0 <= choice < len(space.decisions[place].choices):
            changed: Tensor = indices.clone()
            changed[place] = choice
            moved = space.from_indices(changed.tolist())
            if (space.flops(moved) - flops) * by > 0:
                return moved
    raise AssertionError("the ends of the space are in its groups")
