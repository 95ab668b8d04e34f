"""Activation checkpointing: blocks that keep their input alone and run again for their gradients.

(Chen et al., arXiv 1604.06174, through ``torch.utils.checkpoint``.) Gradients of weights are the
same bit for bit; under masks, which every block then makes for itself, but for the order of
additions. A training step runs its blocks' forward pass twice.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from models.nets.normalize import BatchStatistics
from models.nets.view import AbstractView

RunBlock = Callable[[nn.Module, Tensor, AbstractView, BatchStatistics], Tensor]
"""How a net runs one of its blocks."""


def run_once(
    block: nn.Module, x: Tensor, view: AbstractView, statistics: BatchStatistics
) -> Tensor:
    """Keep all that the block's gradients need."""
    return block(x, view, statistics)


def run_again(
    block: nn.Module, x: Tensor, view: AbstractView, statistics: BatchStatistics
) -> Tensor:
    """Keep ``x`` alone. The second run has the first one's weights, view and random numbers.

    The weights are kept because ``functional_call`` may have replaced the block's, and puts them
    back before the backward pass.
    """
    weights: dict[str, Tensor] = dict(block.named_parameters())
    start = view.copy()
    copies: list[AbstractView] = []

    def run(x: Tensor) -> Tensor:
        copies.append(start.copy())
        return functional_call(block, weights, (x, copies[-1], statistics))

    found = checkpoint(run, x, use_reentrant=False)
    view.go_on_from(copies[0])
    assert isinstance(found, Tensor)
    return found
