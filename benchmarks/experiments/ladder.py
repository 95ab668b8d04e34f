"""A ladder: one fixed arch for each of some even budgets, the same in every run of an experiment.

Where all runs train and are measured on the same archs, what differs is how often each is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

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
    taken = np.zeros((ROUNDS, len(trials)))
    for turn in range(ROUNDS):
        for place, trial in enumerate(trials):
            taken[turn, place] = sum(trial.step_ms(masked=False) for _ in range(STEPS)) / STEPS
    return [round(ms, 3) for ms in np.median(taken[1:], axis=0).tolist()]


def alone(base: Recipe, arch: Arch) -> Recipe:
    """The recipe with which one arch trains alone."""
    recipe = job.alone(base, json.dumps(get_space(base.space).arch_to_json(arch)))
    return recipe.replace(
        generator=base.generator.replace(pretrain_steps=0, resource_batch=1),
    )
