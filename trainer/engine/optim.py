"""Optimizers of a run and their schedules: linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from models.generator.network import ArchitectureGenerator
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import Optimizer


def build_optimizer(net: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
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
    return torch.optim.Adam(generator.parameters(), lr=learning_rate, fused=True)


def learning_rate_at(step: float, total_steps: int, options: Optimizer) -> float:
    """At step ``step`` of ``total_steps``, counted from 0."""
    warm_up = options.warm_up_share * total_steps
    if step < warm_up:
        return options.learning_rate * min((step + 1) / warm_up, 1.0)
    progress = (step - warm_up) / max(total_steps - warm_up, 1)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def linear(first: float, last: float, progress: float) -> float:
    """A value that moves from first to last as progress goes from 0 to 1."""
    return first + (last - first) * min(progress, 1.0)


@dataclass(frozen=True)
class Schedule:
    """What depends on how far a run is.

    temperature: of the Gumbel noise. masked: whether subnets that the generator answers run as
    masks, through which the task loss reaches it, or as slices, which is faster. progress: the
    share of the run that is done, 0 to 1.
    """

    learning_rate: float
    generator_learning_rate: float
    temperature: float
    masked: bool
    progress: float = 0.0


def schedule_at(
    step: int, total_steps: int, recipe: Recipe, position: float | None = None
) -> Schedule:
    """At step ``step`` of ``total_steps``, counted from 0.

    position: the step that everything gradual takes it for, where steps differ in what they cost.
    """
    position = step if position is None else position
    options, progress = recipe.generator, position / total_steps
    return Schedule(
        learning_rate=learning_rate_at(position, total_steps, recipe.optimizer),
        generator_learning_rate=linear(options.learning_rate, options.learning_rate / 10, progress),
        temperature=linear(options.first_temperature, options.last_temperature, progress),
        masked=step % options.masked_every == 0,
        progress=progress,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
