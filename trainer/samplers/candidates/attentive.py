"""Best-up and worst-up: of some archs of a size the best, or the worst, trains.

AttentiveNAS, arXiv 2011.09011. Theirs are tried with the loss on the training batch or an accuracy
predictor, before every step; here at updates, on held-out images (``candidates``).
"""

from __future__ import annotations

from models.space.arch import Arch
from trainer.samplers.candidates.base import AbstractCandidateSampler


class BestUp(AbstractCandidateSampler):
    """Trains what is near the Pareto front already. A winner is tried again at its next turn."""

    def keep(self, archs: list[Arch], losses: list[float]) -> list[Arch]:
        return [archs[losses.index(min(losses))]]


class WorstUp(AbstractCandidateSampler):
    """Trains what lags behind: lifting the worst lifts the bound of all."""

    def keep(self, archs: list[Arch], losses: list[float]) -> list[Arch]:
        return [archs[losses.index(max(losses))]]
