"""Probe: what Algorithm 2 may ask of the supernet now and at the update before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from models.space.arch import Arch
from models.space.relaxed import Relaxed


class Probe(Protocol):
    """Losses on one batch that no weight is trained on, with w_t and with w_{t-1}."""

    def generate(self, budget_flops: Tensor) -> Relaxed:
        """The arch that the generator samples for a budget (a scalar tensor), with gradients."""
        ...

    def loss(self, arch: Arch | Relaxed, *, before: bool) -> Tensor:
        """Cross-entropy of a subnet with the weights of now, or of the update before."""
        ...

    def mixing_gradient(
        self, arch: Relaxed, budgets: Sequence[float], *, before: bool
    ) -> tuple[float, Tensor]:
        """The loss of what ``generate`` gave, and its gradient for weights that mix the features.

        The generator reads features of its budget. Were they a mixture of those of ``budgets``,
        this is the slope for each weight, shape (budgets,).
        """
        ...

    def level(self, arch: Arch) -> float:
        """Loss of what is served (the average of the weights) on one fixed set of images.

        The same held-out images at every update, 1,000 or as many as there are.
        """
        ...

    def influences(self, archs: Sequence[Arch]) -> list[float]:
        """By how much a step on each would lower the mean loss of all of them, to first order.

        Products of gradients: the arch's own on one half of the batch, the mean of all on the
        other half.
        """
        ...
