"""Strict fairness: in every step all choices of a decision train equally often (FairNAS)."""

from __future__ import annotations

import torch

from trainer.samplers.base import Draw
from trainer.samplers.fixed.base import AbstractFixedSampler


class Fair(AbstractFixedSampler):
    """As many archs a step as the decision with most choices has, each choice of it in one.

    Their gradients add up and the weights move once (arXiv 1907.01845). Choices of a decision that
    has fewer differ by one training at most within a step, and not at all in the mean over steps.
    A step costs as many passes: compare at equal compute.
    """

    keeps_archs = False

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        del progress
        counts = [len(decision.choices) for decision in self.space.decisions]
        most = max(counts)
        dealt = [_deal(count, most, rng) for count in counts]
        return [Draw(arch=self.space.from_indices(row)) for row in zip(*dealt, strict=True)]

    def probabilities(self) -> list[float]:
        return []


def _deal(choices: int, cards: int, rng: torch.Generator) -> list[int]:
    """So many choices, each as often as the others or once more, in random order."""
    decks = [torch.randperm(choices, generator=rng) for _ in range(-(-cards // choices))]
    dealt = torch.cat(decks)[:cards]
    return dealt[torch.randperm(cards, generator=rng)].tolist()
