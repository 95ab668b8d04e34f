"""Optimizers of a run and the one schedule: linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math

import torch

from models.generator import ArchitectureGenerator
from models.nets.elastic import AbstractNet
from trainer.recipe import Optimizer


def build_optimizer(net: AbstractNet, options: Optimizer) -> torch.optim.Optimizer:
    """For the supernet. Weight decay on matrices and kernels only.

    A sliced step leaves zero gradients outside the slice, where momentum and decay still act.
    """
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def build_generator_optimizer(
    generator: ArchitectureGenerator, learning_rate: float
) -> torch.optim.Optimizer:
    """Adam of its own: the supernet's learning rate does not suit an LSTM."""
    return torch.optim.Adam(generator.parameters(), lr=learning_rate)


def learning_rate_at(step: int, total_steps: int, options: Optimizer) -> float:
    """Of step ``step`` of ``total_steps``, counted from 0."""
    warm_up = options.warm_up_share * total_steps
    if step < warm_up:
        return options.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(total_steps - warm_up, 1)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
