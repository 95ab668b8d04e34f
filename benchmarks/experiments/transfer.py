"""What does a step of one subnet do for all the others, and for what time?

A supernet trains on a frozen ladder of archs, all drawn alike. At three moments of the run its
weights are taken, and trained on in different ways, each for a short while whose learning rate
falls to zero: with all archs in turn, or with one of them alone. Then every arch is measured. All
ways see the same batches; they take the same number of steps, or the same time.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.experiments.experiment import Case
from benchmarks.experiments.measure import CALIBRATION_BATCHES, loss_and_accuracy
from benchmarks.experiments.paired import in_words
from benchmarks.experiments.static_tilts import RUNGS, StaticTilts, recipe_of
from benchmarks.parts.lines import Row
from models.nets.elastic import AbstractNet
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from trainer.data.run_data import RunData, calibration_images, run_data
from trainer.engine.horizon import horizon_of
from trainer.engine.interrupt import Interrupt, Stopped
from trainer.engine.optim import build_optimizer, schedule_at, set_learning_rate
from trainer.engine.seeds import seed_step
from trainer.engine.state import TrainingState, fresh_state
from trainer.engine.step import train_step
from trainer.evaluation import calibrated

MOMENTS = (0.25, 0.5, 0.75)
"""Shares of the run."""
SHARE = 0.25
"""Of an epoch, for which a way of training goes on with all archs in turn."""
ALL = "all in turn"
ACCOUNTS = ("steps", "time")


class Transfer(StaticTilts):
    """A case is a seed, on the ladder and with the step times of ``static-tilts``."""

    def cases(self, setup: Row) -> Iterator[Case]:
        compute = self.compute_of(setup, "uniform", "steps")
        for seed in self.seeds:
            recipe = recipe_of(self.base, setup["ladder"], "uniform", compute=compute)
            yield Case("uniform", recipe.replace(seed=seed))

    def run_case(self, case: Case, setup: Row, interrupt: Interrupt) -> Row:
        recipe, splits = case.recipe, self.splits(case.recipe.seed)
        archs = [self.space.arch_from_json(document) for document in setup["ladder"]]
        times = np.array(setup["step_ms"])
        state, data = fresh_state(recipe, splits), run_data(recipe, splits)
        horizon = horizon_of(recipe, state.sampler, len(data.train))
        stream = data.train.stream(0, 0)
        moments: list[Row] = []
        while len(moments) < len(MOMENTS):
            if interrupt.signal is not None:
                raise Stopped(interrupt.signal)
            seed_step(recipe.seed, state.step)
            position = horizon.position(state.step, state.compute)
            schedule = schedule_at(state.step, horizon.steps, recipe, position)
            train_step(state, next(stream), schedule, recipe)
            share = MOMENTS[len(moments)]
            if horizon.position(state.step, state.compute) >= share * horizon.steps:
                print(f"at {share:.0%} of the run, step {state.step}", file=sys.stderr)
                trial = _Trial(state, data, case, schedule.learning_rate, archs, times)
                moments.append({"share": share, **trial.outcome(interrupt)})
        return {"moments": moments}

    def table(self, setup: Row, results: list[Row]) -> str:
        """Nats taken off each arch's loss: by all in turn, and by each alone beyond that."""
        heads = [f"{f / 1e6:.2f}" for f in setup["flops"]]
        lines = [
            f"| same | trained, MFLOPs | steps | {' | '.join(heads)} | mean |",
            "|---|--:|--:|" + "--:|" * (RUNGS + 1),
        ]
        for account in ACCOUNTS:
            for way in (ALL, *heads):
                runs = [_mean_over_moments(run, account, way, heads) for run in results]
                steps = np.mean([run[0] for run in runs])
                gained = np.array([run[1] for run in runs])
                cells = [f"{value:+.3f}" for value in gained.mean(0)]
                mean = in_words(gained.mean(1).tolist(), 3)
                lines.append(f"| {account} | {way} | {steps:,.0f} | {' | '.join(cells)} | {mean} |")
        return "\n".join(lines)


class _Trial:
    """The weights of a moment, and the ways to train them on."""

    def __init__(
        self,
        state: TrainingState,
        data: RunData,
        case: Case,
        learning_rate: float,
        archs: Sequence[Arch],
        times: np.ndarray,
    ) -> None:
        self.state, self.data, self.case = state, data, case
        self.learning_rate, self.archs, self.times = learning_rate, archs, times
        self.steps = max(len(archs), round(SHARE * len(data.train)))
        self.images = calibration_images(data.train, CALIBRATION_BATCHES)

    def outcome(self, interrupt: Interrupt) -> Row:
        """Held-out loss of every arch at the moment, and after each way of training on."""
        ways: list[Row] = []
        for account in ACCOUNTS:
            for place in (None, *range(len(self.archs))):
                if interrupt.signal is not None:
                    raise Stopped(interrupt.signal)
                steps = self.steps
                if account == "time" and place is not None:
                    steps = round(steps * float(self.times.mean() / self.times[place]))
                if account == "time" and place is None:
                    continue  # the same by both accounts
                print(
                    f"{account}: way {len(ways) + 1} of {2 * len(self.archs) + 1}", file=sys.stderr
                )
                net = self._trained(place, steps)
                ways.append(
                    {"account": account, "arch": place, "steps": steps, "losses": self._losses(net)}
                )
        return {"before": self._losses(self.state.net), "ways": ways}

    def _trained(self, place: int | None, steps: int) -> AbstractNet:
        """A copy of the net, trained on with one arch, or with all in turn."""
        recipe = self.case.recipe
        net = copy.deepcopy(self.state.net)
        optimizer = build_optimizer(net, recipe.optimizer)
        optimizer.load_state_dict(copy.deepcopy(self.state.optimizer.state_dict()))
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        rng = np.random.default_rng(recipe.seed)
        turns = rng.permutation(np.arange(steps) % len(self.archs))
        stream = self.data.train.stream(0, 0)
        for step in range(steps):
            set_learning_rate(optimizer, self.learning_rate * (1 - step / steps))
            optimizer.zero_grad(set_to_none=False)  # as in a run: momentum acts on all weights
            arch = self.archs[turns[step] if place is None else place]
            batch = next(stream)
            images = at_resolution(batch.images, net.space.resolution(arch))
            logits = net(images, arch)
            smoothing = recipe.optimizer.label_smoothing
            F.cross_entropy(logits, batch.labels, label_smoothing=smoothing).backward()
            optimizer.step()
        return net

    def _losses(self, net: AbstractNet) -> list[float]:
        losses: list[float] = []
        for arch in self.archs:
            statistics = calibrated(net, arch, self.images, self.case.recipe.device)
            loss, _ = loss_and_accuracy(net, arch, statistics, self.data.decisions)
            losses.append(round(loss, 5))
        return losses


def _mean_over_moments(
    run: Row, account: str, way: str, heads: Sequence[str]
) -> tuple[float, np.ndarray]:
    """Steps, and nats taken off the loss of each arch: of one alone, beyond all in turn."""
    place = None if way == ALL else heads.index(way)
    steps: list[int] = []
    gained: list[np.ndarray] = []
    for moment in run["moments"]:
        found = {(way["account"], way["arch"]): way for way in moment["ways"]}
        base = found["steps", None]
        here = base if place is None else found[account, place]
        steps.append(here["steps"])
        first = moment["before"] if place is None else base["losses"]
        gained.append(np.array(first) - np.array(here["losses"]))
    return float(np.mean(steps)), np.mean(gained, axis=0)
