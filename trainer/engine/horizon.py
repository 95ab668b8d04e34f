"""Horizon: how long a run is, in steps, in multiply-adds or in seconds.

The compute of a run is the multiply-adds of all that goes through the supernet for its training:
forward passes of steps and of updates of B, by the FLOPs of the subnet that runs (a masked pass
costs the whole supernet), and backward passes, each counted as two forward ones. Evaluations are
not counted, nor is the generator, which runs once a step whatever is drawn.

Time has parts that do not follow FLOPs, once in a step and once in every pass.
``SamplerOptions.step_flops`` and ``pass_flops`` say how large they are, as FLOPs, and
``forward_weight`` what a pass counts that trains nothing: then the same count is of time.
``benchmarks/experiments/samplers.py`` fits all three to a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from itertools import chain

import numpy as np
import torch

from models.space.arch import Arch
from models.space.relaxed import Relaxed
from models.space.search_space import SearchSpace
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import AbstractSampler

FORWARD_AND_BACKWARD = 3
DRAWS = 1000
"""Draws of the sampler over which the FLOPs of a step are averaged."""
PLACES = 10
"""Of a run, evenly spread, at which they are where a sampler moves."""


@dataclass(frozen=True)
class Horizon:
    """``steps``: of the run; with a ``budget`` what is foreseen as it begins.

    budget: what the run may spend, in multiply-adds or in seconds; 0 for all of its steps.
    most_steps: after which it ends even if not all is spent; 0 for no bound.
    """

    steps: int
    steps_per_epoch: int
    budget: float = 0.0
    most_steps: int = 0

    def position(self, step: int, spent: float) -> float:
        """Where schedules stand before a step, 0 to ``steps``: as if all steps cost the same."""
        if not self.budget:
            return step
        of_most = step / self.most_steps if self.most_steps else 0.0
        return self.steps * min(max(spent / self.budget, of_most), 1.0)

    def foreseen(self, step: int, spent: float) -> int:
        """Steps of the run, if those to come cost what those so far did."""
        return round(step * self.steps / (self.position(step, spent) or math.inf)) or self.steps

    def is_over(self, step: int, spent: float) -> bool:
        """Whether there is no step left."""
        if not self.budget:
            return step >= self.steps
        return spent >= self.budget or 0 < self.most_steps <= step


def horizon_of(recipe: Recipe, sampler: AbstractSampler, steps_per_epoch: int) -> Horizon:
    """Of a run of the recipe's epochs, or of its hours or compute where one is not 0; bounded."""
    steps = recipe.epochs * steps_per_epoch
    if recipe.compute:
        step_flops = masked_and_sliced_flops(recipe, sampler)
        steps = math.ceil(recipe.compute / (FORWARD_AND_BACKWARD * recipe.batch_size * step_flops))
    most = recipe.most_epochs * steps_per_epoch
    budget = recipe.compute or 3600 * recipe.training_hours
    return Horizon(min(steps, most or steps), steps_per_epoch, budget, most)


@dataclass(frozen=True)
class StepFlops:
    """Means over steps, for one image: multiply-adds of the forward passes, and how many there are.

    masked, sliced: of steps that run as such.
    """

    masked: float
    sliced: float
    passes: float

    def counted(self, masked_every: int, options: SamplerOptions) -> float:
        """Over masked and sliced steps, with what options say of steps and passes beside."""
        share = 1 / masked_every
        mixed = share * self.masked + (1 - share) * self.sliced
        return mixed + options.step_flops + self.passes * options.pass_flops


def masked_and_sliced_flops(recipe: Recipe, sampler: AbstractSampler) -> float:
    """The mean over a run's steps of what one counts for each image, its overhead included."""
    return run_step_flops(recipe, sampler).counted(recipe.generator.masked_every, sampler.options)


def run_step_flops(recipe: Recipe, sampler: AbstractSampler) -> StepFlops:
    """The mean over a run's steps.

    A run that ends by what it spends moves as it spends, so that it takes more steps where they
    cost less.
    """
    if not sampler.moves:
        return mean_step_flops(sampler)
    places = [mean_step_flops(sampler, (place + 0.5) / PLACES) for place in range(PLACES)]
    weights = [1.0] * PLACES
    if recipe.compute or recipe.training_hours:
        every = recipe.generator.masked_every
        weights = [1 / place.counted(every, sampler.options) for place in places]
    means = np.average([astuple(place) for place in places], axis=0, weights=weights)
    return StepFlops(*means.tolist())


def mean_step_flops(sampler: AbstractSampler, progress: float = 0.0) -> StepFlops:
    """As the sampler draws at a share ``progress`` of the run, before it has learned anything.

    A masked pass costs the whole supernet (at the largest resolution); a sliced one its arch, or
    its budget, which the generator learns to use up.
    """
    rng, space = torch.Generator().manual_seed(0), sampler.space
    masked = sliced = 0.0
    passes = 0
    for draw in chain.from_iterable(sampler.draw(rng, progress) for _ in range(DRAWS)):
        passes += 1
        if draw.arch is not None:
            masked += space.flops(draw.arch)
            sliced += space.flops(draw.arch)
        else:
            assert draw.budget_flops is not None
            masked += space.max_flops
            sliced += draw.budget_flops
    return StepFlops(masked / DRAWS, sliced / DRAWS, passes / DRAWS)


def step_compute(
    space: SearchSpace,
    subnets: Iterable[Arch | Relaxed],
    images: int,
    options: SamplerOptions,
    *,
    asks_largest: bool = False,
) -> int:
    """Multiply-adds of a step: forward and backward passes of subnets, each on so many images.

    asks_largest: a forward pass of the largest subnet is among them, which teaches the others.
    """
    each = sum(pass_flops(space, subnet, options.pass_flops) for subnet in subnets)
    teacher = forward_flops(space, space.largest, options) if asks_largest else 0
    return images * (FORWARD_AND_BACKWARD * (each + round(options.step_flops)) + teacher)


def forward_flops(space: SearchSpace, subnet: Arch | Relaxed, options: SamplerOptions) -> int:
    """What a forward pass of one image counts that no backward one follows."""
    return round(options.forward_weight * pass_flops(space, subnet, options.pass_flops))


def pass_flops(space: SearchSpace, subnet: Arch | Relaxed, overhead: float) -> int:
    """Of one image's forward pass, with what a pass costs beside (``SamplerOptions.pass_flops``).

    Masks run the whole supernet.
    """
    flops = space.max_flops if isinstance(subnet, Relaxed) else space.flops(subnet)
    return flops + round(overhead)
