"""A ladder: one fixed arch for each of some even budgets, the same in every run of an experiment.

Where all runs train and are measured on the same archs, what differs is how often each is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.parts.step_costs import Trial
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.spaces import get_space
from trainer import job
from trainer.data.splits import Splits
from trainer.evaluation import answers
from trainer.recipes.recipe import Recipe

ROUNDS, STEPS = 7, 8


def ladder(space: SearchSpace, count: int, seed: int = 0) -> list[Arch]:
    """What a generator answers that knows its budgets and no image, at so many even budgets."""
    return answers(taught_generator(space, seed), even_budgets(space, count))


def taught_generator(space: SearchSpace, seed: int = 0) -> ArchitectureGenerator:
    """A generator that keeps its budgets, and has seen no image."""
    torch.manual_seed(seed)
    generator = ArchitectureGenerator(space)
    fit_to_budgets(
        generator,
        ResourceLoss(),
        steps=1000,
        rng=torch.Generator().manual_seed(seed),
    )
    return generator


def step_times(base: Recipe, archs: Sequence[Arch], splits: Splits) -> list[float]:
    """Milliseconds of processor time of a step that trains each arch.

    The median over rounds in which all take turns, so that what slows the machine slows all.
    """
    trials = [Trial(alone(base, arch), splits) for arch in archs]
    return in_turn([partial(trial.step_ms, masked=False) for trial in trials])


def part_times(base: Recipe, archs: Sequence[Arch], splits: Splits) -> dict[str, list[float]]:
    """As ``step_times``, with the passes of a step apart: "step_ms", "pass_ms", "forward_ms".

    A step is a run's, whose generator learns as well. A pass is forward and backward, on as many
    images; the forward one alone is without gradients.
    """
    trials = [Trial(_one_of(base, arch), splits) for arch in archs]
    tasks: list[Callable[[], float]] = []
    for trial, arch in zip(trials, archs, strict=True):
        tasks.append(partial(trial.step_ms, masked=False))
        tasks += [partial(trial.pass_ms, arch, backward=backward) for backward in (True, False)]
    taken = in_turn(tasks)
    return {name: taken[k::3] for k, name in enumerate(("step_ms", "pass_ms", "forward_ms"))}


def in_turn(tasks: Sequence[Callable[[], float]]) -> list[float]:
    """What each took, in milliseconds: medians over rounds in which all take turns."""
    taken = np.zeros((ROUNDS, len(tasks)))
    for turn in range(ROUNDS):
        for place, task in enumerate(tasks):
            taken[turn, place] = sum(task() for _ in range(STEPS)) / STEPS
    return [round(ms, 3) for ms in np.median(taken[1:], axis=0).tolist()]


def _one_of(base: Recipe, arch: Arch) -> Recipe:
    """A recipe that draws one arch, and whose generator learns its budgets."""
    document = get_space(base.space).arch_to_json(arch)
    options = base.sampler_options.replace(archs=(document,))
    return base.replace(sampler="static-tilt", sampler_options=options)


def alone(base: Recipe, arch: Arch) -> Recipe:
    """The recipe with which one arch trains alone."""
    recipe = job.alone(base, json.dumps(get_space(base.space).arch_to_json(arch)))
    return recipe.replace(
        generator=base.generator.replace(pretrain_steps=0, resource_batch=1),
    )
