"""Candidates that did well so far are drawn ever more often (GreedyNAS, arXiv 2003.11236)."""

from __future__ import annotations

import torch

from models.space.arch import Arch
from trainer.samplers.base import Draw
from trainer.samplers.candidates.base import TRIED, AbstractCandidateSampler
from trainer.samplers.fixed.uniform_arch import uniform_arch

FINAL_SHARE = 0.8
"""Of draws from the pool, at the end of the run; it grows linearly from none, as theirs."""


class Greedy(AbstractCandidateSampler):
    """Uniform archs are tried; the better half of those and of the pool stays in the pool.

    Losses of archs of all sizes are compared, as theirs are: the pool comes to hold large ones.
    (The pool has as many parts as there are groups, which take turns at updates and nothing else.)
    """

    keeps_archs = False
    size = TRIED

    def keep(self, archs: list[Arch], losses: list[float]) -> list[Arch]:
        order = sorted(range(len(archs)), key=losses.__getitem__)
        return [archs[place] for place in order[: max(1, len(archs) // 2)]]

    def random_arch(self, group: int, rng: torch.Generator) -> Arch:
        del group
        return uniform_arch(self.space, rng)

    def share(self, progress: float) -> float:
        return FINAL_SHARE * progress

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        (draw,) = super().draw(rng, progress)
        return [Draw(arch=draw.arch)]

    def probabilities(self) -> list[float]:
        return []
