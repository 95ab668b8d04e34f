"""Probe: what Algorithm 2 may ask of the supernet now and at the update before."""

from __future__ import annotations

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
