"""Pareto-focused sampling: each size's best archs found so far (FocusFormer, arXiv 2208.10861)."""

from __future__ import annotations

import torch

from models.space.arch import Arch
from trainer.samplers.candidates.base import TRIED, AbstractCandidateSampler, arch_between


class Focus(AbstractCandidateSampler):
    """A group keeps its best archs and tries changes of them: a search that runs beside training.

    FocusFormer trains a sampler network for this before the supernet; here the archs near the
    front are kept as they are. Half of the draws are random archs of the group, so that the
    supernet can still tell archs apart.
    """

    keeps_archs = False
    size = 3

    def keep(self, archs: list[Arch], losses: list[float]) -> list[Arch]:
        order = sorted(range(len(archs)), key=losses.__getitem__)
        return [archs[place] for place in order[: self.size]]

    def propose(self, group: int, rng: torch.Generator) -> list[Arch]:
        near = [self._near(group, arch, rng) for arch in self.kept(group)]
        return near + [self.random_arch(group, rng) for _ in range(TRIED - len(near))]

    def _near(self, group: int, arch: Arch, rng: torch.Generator) -> Arch:
        """An arch of the group that has about three quarters of its choices from ``arch``."""
        low = self.groups[group - 1] if group else self.space.min_flops
        other = self.space.indices(arch_between(self.space, low, self.groups[group], rng))
        own = self.space.indices(arch)
        taken = torch.rand(len(own), generator=rng) < 0.75
        mixed = [a if t else b for a, b, t in zip(own, other, taken.tolist(), strict=True)]
        found = self.space.from_indices(mixed)
        return found if low <= self.space.flops(found) <= self.groups[group] else arch

    def share(self, progress: float) -> float:
        del progress
        return 0.5
