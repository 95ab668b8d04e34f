"""Dry run: what a recipe needs, before its data and its days are spent.

All that training builds is built, by the same functions, and one masked step, one sliced step and
one update of the distribution run on random images of the recipe's size. No data set is needed
and nothing is written. A batch that would not fit is cut; what it costs whole is an estimate.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

from models.generator.network import ArchitectureGenerator
from models.nets.normalize import FrozenStatistics
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics
from trainer.data.batch_workers import local_processes
from trainer.data.batches import Batch
from trainer.data.run_data import RunData, run_data
from trainer.data.splits import LabelledImages, Splits, cores
from trainer.dry_run.activations import ActivationBytes
from trainer.dry_run.plan import Plan, plan_of
from trainer.engine.horizon import FORWARD_AND_BACKWARD, run_step_flops
from trainer.engine.optim import schedule_at
from trainer.engine.probe import probe_of
from trainer.engine.state import TrainingState, fresh_state
from trainer.engine.step import StepResult, pretrain_generator, teacher_of, train_step
from trainer.engine.teacher import open_teacher
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import Distillation

Result = TypeVar("Result")

FEWEST_IMAGES = 2
"""At once: BatchNorm needs two."""
MOST_FLOPS = 4e10
"""Multiply-adds of a forward pass here. More takes longer and tells no more: half a minute a step
on a slow core."""


@dataclass(frozen=True)
class Cost:
    """Seconds, and the bytes that forward passes keep for their backward pass.

    ``image_bytes``: for each image. ``fixed_bytes``: however many there are, like masked weights
    and copies of weights in another precision.
    """

    seconds: float
    image_bytes: int
    fixed_bytes: int = 0

    def bytes_of(self, images: int) -> int:
        """For a batch."""
        return self.image_bytes * images + self.fixed_bytes


@dataclass(frozen=True)
class Trial:
    """What was measured, with ``images`` at once.

    ``costs``: of a ``masked`` and a ``sliced`` step, and of an ``update`` of the distribution where
    the sampler learns. ``losses``: of the two steps. ``sliced_flops``: of the subnets of the sliced
    one. ``prepare_s``: what the images' augmentation took; ``teacher_s``: what a teacher takes of a
    step, whatever is drawn.
    """

    images: int
    costs: dict[str, Cost]
    losses: dict[str, float]
    sliced_flops: int
    prepare_s: float
    teacher_s: float


@dataclass(frozen=True)
class DryRun:
    """All that a dry run tells. ``training_flops`` are multiply-adds, forward and backward.

    ``total_s``: of all steps, and updates; of a run that ends by the clock, what that says.
    ``memory``: bytes of the recipe's batch in a single process, by what takes them. ``copies`` are
    those of weights, masked or in another precision, that are kept for a backward pass.
    """

    recipe: Recipe
    space: SearchSpace
    groups: tuple[int, ...]
    device: str
    plan: Plan
    trial: Trial
    memory: dict[str, int]
    epoch_s: float
    total_s: float
    training_flops: float


def dry_run(recipe: Recipe, images: int | None = None, *, steps: int = 0) -> DryRun:
    """Build a recipe and try it. ``images``: how many at once; None for what fits and is quick.

    ``steps``: of whole batches, by which the time of an epoch is told, where one is not enough.
    Runs on the recipe's device if it is there, else on the CPU, and says which.
    Raises ValueError for a recipe that cannot be built, for data that is neither known nor
    readable, and for fewer than 2 images.
    """
    if images is not None and images < FEWEST_IMAGES:
        raise ValueError(f"--dry-run-batch is {images}; BatchNorm needs at least {FEWEST_IMAGES}")
    plan = plan_of(recipe)
    cuda = torch.device(recipe.device).type == "cuda" and torch.cuda.is_available()
    here = recipe.replace(device=recipe.device if cuda else "cpu", accumulate=1, compile=False)
    splits = random_splits(here, plan.classes, FEWEST_IMAGES)
    state = state_to_try(here, splits, plan)
    answer_at_full_resolution(state.generator)
    trial = try_out(here, state, plan, images)

    means = run_step_flops(recipe, state.sampler)
    share = plan.masked_steps / plan.steps
    # what a sliced step takes depends on what was drawn: to the mean, in proportion to its FLOPs
    subnets_s = max(trial.costs["sliced"].seconds - trial.teacher_s, 0.0)
    usual_sliced_s = trial.teacher_s + subnets_s * means.sliced / trial.sliced_flops
    of_a_batch = recipe.batch_size / trial.images
    if steps:
        usual_sliced_s = mean_step_s(here, plan, steps) / of_a_batch
    step_s = of_a_batch * (share * trial.costs["masked"].seconds + (1 - share) * usual_sliced_s)
    views = recipe.distillation.views
    if views:  # each step here asked the teacher; a run's later epochs do not
        step_s -= of_a_batch * trial.teacher_s * (1 - min(views / plan.epochs, 1))
    if recipe.data_workers == 0 or (recipe.data_workers < 0 and cores() <= local_processes()):
        step_s += of_a_batch * trial.prepare_s
    update_s = 0.0
    if "update" in trial.costs:
        update_s = of_a_batch * trial.costs["update"].seconds * plan.updates / plan.epochs
    at_once = -(-recipe.batch_size // recipe.accumulate)
    dearest = max(trial.costs.values(), key=lambda cost: cost.bytes_of(at_once))
    optimizer = (value for each in state.optimizer.state.values() for value in each.values())
    parameters = bytes_of(state.net.parameters())
    epoch_s = plan.steps_per_epoch * step_s + update_s
    most_s = recipe.most_epochs * epoch_s or math.inf
    step_flops = share * means.masked + (1 - share) * means.sliced
    return DryRun(
        recipe=recipe,
        space=state.generator.space,
        groups=state.sampler.groups,
        device=here.device,
        plan=plan,
        trial=trial,
        memory={
            "parameters": parameters,
            "gradients": parameters,
            "optimizer": bytes_of(value for value in optimizer if isinstance(value, Tensor)),
            "before": bytes_of(state.before.values()) if state.sampler.learns else 0,
            "average": parameters if state.average is not None else 0,
            "copies": dearest.fixed_bytes,
            "activations": dearest.image_bytes * at_once,
        },
        epoch_s=epoch_s,
        total_s=min(3600 * recipe.training_hours or plan.epochs * epoch_s, most_s),
        training_flops=FORWARD_AND_BACKWARD * plan.steps * recipe.batch_size * step_flops,
    )


def state_to_try(recipe: Recipe, splits: Splits, plan: Plan) -> TrainingState:
    """As it begins; with plain statistics in place of the start's, where those stay."""
    state = fresh_state(recipe.replace(distillation=Distillation()), splits)
    state.teacher = open_teacher(recipe, plan.labels or plan.classes)
    if recipe.statistics == "start":
        sizes = {norm.name: norm.size(state.net.space.largest) for norm in state.net.space.norms}
        units = {name: (np.zeros(n, "f4"), np.ones(n, "f4")) for name, n in sizes.items()}
        state.frozen = FrozenStatistics(SharedStatistics(units), recipe.device)
    return state


def try_out(recipe: Recipe, state: TrainingState, plan: Plan, images: int | None) -> Trial:
    """A small masked step, to warm up and to see what fits; then what is measured."""
    schedule = schedule_at(0, plan.steps, recipe)

    def step(batch: Batch, *, masked: bool) -> tuple[StepResult, float, int]:
        return measured(
            state, lambda: train_step(state, batch, replace(schedule, masked=masked), recipe)
        )

    def update(data: RunData) -> tuple[float, int]:
        probe = probe_of(state, data.held_out.batch(0, 0), schedule, recipe, data.decisions)
        _, seconds, kept = measured(state, lambda: state.sampler.update(probe, state.rng))
        return seconds, kept

    few = random_data(recipe, plan.classes, FEWEST_IMAGES)
    _, _, few_bytes = step(few.train.batch(0, 0), masked=True)
    if images is None:
        fit = free_bytes(recipe.device) // 4 // (few_bytes // FEWEST_IMAGES)
        quick = round(MOST_FLOPS / state.generator.space.max_flops)
        images = min(fit, max(quick, 2 * FEWEST_IMAGES), recipe.batch_size, plan.train_images)
        images = max(images, FEWEST_IMAGES)
    data = random_data(recipe, plan.classes, images)
    started = time.perf_counter()
    batch = data.train.batch(0, 0)
    prepare_s = time.perf_counter() - started
    masked, masked_s, masked_bytes = step(batch, masked=True)
    sliced, sliced_s, sliced_bytes = step(batch, masked=False)
    costs = {
        "masked": grown(masked_s, few_bytes, masked_bytes, images),
        # two sliced steps are of two subnets: all of it is taken to grow
        "sliced": Cost(sliced_s, sliced_bytes // images),
    }
    teacher_s = 0.0
    teacher = teacher_of(state, recipe)
    if teacher is not None:
        _, teacher_s, _ = measured(state, lambda: teacher(batch.images.to(recipe.device)))
    if state.sampler.learns:
        _, few_update_bytes = update(few)
        update_s, update_bytes = update(data)
        costs["update"] = grown(update_s, few_update_bytes, update_bytes, images)
    return Trial(
        images=images,
        costs=costs,
        losses={"masked": masked.loss, "sliced": sliced.loss},
        sliced_flops=sum(flops for flops, _ in sliced.drawn),
        prepare_s=prepare_s,
        teacher_s=teacher_s,
    )


def mean_step_s(recipe: Recipe, plan: Plan, steps: int) -> float:
    """Seconds of a sliced step: the mean of as many, of subnets as the whole run draws them.

    The generator learns its budgets first. Each step is taken twice and timed once, since a shape
    that is new takes longer.
    """
    splits = random_splits(recipe, plan.classes, recipe.batch_size)
    state = state_to_try(recipe, splits, plan)
    pretrain_generator(state, recipe)
    batch = run_data(recipe, splits).train.batch(0, 0)
    schedule = replace(schedule_at(0, plan.steps, recipe), masked=False)
    seconds = 0.0
    for step in range(steps):
        schedule = replace(schedule, progress=(step + 0.5) / steps)
        drawn = state.rng.get_state()
        train_step(state, batch, schedule, recipe)
        state.rng.set_state(drawn)
        _, taken, _ = measured(state, partial(train_step, state, batch, schedule, recipe))
        seconds += taken
    return seconds / steps


def grown(seconds: float, few_bytes: int, kept_bytes: int, images: int) -> Cost:
    """What grows with the batch and what does not, from the bytes of the fewest images and more."""
    if images == FEWEST_IMAGES:
        return Cost(seconds, kept_bytes // images)
    each = max(kept_bytes - few_bytes, 0) // (images - FEWEST_IMAGES)
    return Cost(seconds, each, max(few_bytes - FEWEST_IMAGES * each, 0))


def measured(state: TrainingState, work: Callable[[], Result]) -> tuple[Result, float, int]:
    """Do some work: what came of it, seconds, and the most bytes kept for a backward pass."""
    device = next(state.net.parameters()).device
    with ActivationBytes([*state.net.parameters(), *state.before.values()]) as kept:
        started = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result, time.perf_counter() - started, kept.peak


def random_data(recipe: Recipe, classes: int, images: int) -> RunData:
    """One batch of random images for each use, changed as the recipe says."""
    return run_data(recipe.replace(batch_size=images), random_splits(recipe, classes, images))


def random_splits(recipe: Recipe, classes: int, images: int) -> Splits:
    """A data set of as many images, which are all of its splits, of the recipe's resolution."""
    rng = torch.Generator().manual_seed(recipe.seed)
    size = (images, 3, recipe.resolution, recipe.resolution)
    split = LabelledImages(
        torch.randint(256, size, generator=rng, dtype=torch.uint8),
        torch.randint(classes, (images,), generator=rng),
    )
    labels = tuple(f"class {number}" for number in range(classes))
    return Splits(split, split, split, labels, "random images")


def answer_at_full_resolution(generator: ArchitectureGenerator) -> None:
    """Make an untrained generator choose the largest images, which cost a masked step the most."""
    for name in generator.space.resolution.decisions:
        head = generator.heads[generator.space.decision[name].kind]
        assert isinstance(head, torch.nn.Linear)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(-100.0)
            head.bias[-1] = 100.0


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def free_bytes(device: str) -> int:
    """Memory that could be used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def peak_bytes(device: str) -> int:
    """The most memory that this process had: of the GPU, or resident on the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
