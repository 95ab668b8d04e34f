"""Step costs: what a training step of each variant of a recipe takes, in turn, in one process.

In processor time, which other work on the machine moves far less than the clock. What is compared
takes turns, so that what moves it moves all alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from models.space.arch import Arch
from trainer.data.run_data import read_splits, run_data
from trainer.data.splits import Splits
from trainer.engine.optim import schedule_at
from trainer.engine.probe import BatchProbe, probe_of
from trainer.engine.state import fresh_state
from trainer.engine.step import pretrain_generator, train_step
from trainer.recipes.config import with_settings
from trainer.recipes.recipe import Recipe

Variants = Mapping[str, Sequence[str]]
"""Name of a variant -> the settings that make it."""

Costs = dict[str, list[float]]
"""Name of a variant -> milliseconds of processor time of a training step, one figure per round."""

ROUNDS = 6
STEPS = 48
"""Of each variant in a round: what a step costs depends on what is drawn."""


class Trial:
    """A recipe's training as far as it costs time; nothing is written.

    The generator is taught its budgets first, so that steps are as large as in training.
    """

    def __init__(self, recipe: Recipe, splits: Splits | None = None) -> None:
        self.recipe, splits = recipe, splits or read_splits(recipe)
        self.data, self.state = run_data(recipe, splits), fresh_state(recipe, splits)
        steps = min(recipe.generator.pretrain_steps, 200)
        few = recipe.generator.replace(pretrain_steps=steps)
        pretrain_generator(self.state, recipe.replace(generator=few))
        self.schedule = schedule_at(0, 2, recipe)
        self.stream = self.data.train.stream(0, 0)
        self.shift_every = recipe.steps_between_updates(recipe.epochs * len(self.data.train))

    def step_ms(self, *, masked: bool) -> float:
        """One step."""
        start_s = time.process_time()
        batch = next(self.stream)
        train_step(self.state, batch, replace(self.schedule, masked=masked), self.recipe)
        return 1000 * (time.process_time() - start_s)

    def pass_ms(self, arch: Arch, *, backward: bool) -> float:
        """A pass of one arch on a batch of held-out images, forward or both ways."""
        probe, start_s = self.probe(), time.process_time()
        with torch.set_grad_enabled(backward):
            loss = probe.loss(arch, before=False)
        if backward:
            loss.backward()
        return 1000 * (time.process_time() - start_s)

    def update_ms(self) -> float:
        """One update of the distribution; 0 where there is none."""
        if not self.state.sampler.learns:
            return 0.0
        start_s = time.process_time()
        self.state.sampler.update(self.probe(), self.state.rng)
        self.state.keep_weights()
        return 1000 * (time.process_time() - start_s)

    def probe(self) -> BatchProbe:
        """On one held-out batch."""
        batch = self.data.held_out.batch(0, 0)
        return probe_of(self.state, batch, self.schedule, self.recipe, self.data.decisions)


def step_costs(recipe: Recipe, variants: Variants, rounds: int = ROUNDS) -> Costs:
    """Milliseconds of processor time of a step, its share of an update included."""
    trials = {name: Trial(with_settings(recipe, settings)) for name, settings in variants.items()}
    costs: Costs = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, trial in trials.items():
            every = trial.recipe.generator.masked_every
            steps_ms = sum(trial.step_ms(masked=step % every == 0) for step in range(STEPS))
            ms = steps_ms / STEPS + trial.update_ms() / trial.shift_every
            if turn:  # the first of everything is slow
                costs[name].append(ms)
    return costs
