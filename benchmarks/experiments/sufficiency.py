"""Table 4 of the paper: does a score at an update foretell which subnet still learns most?

A supernet trains with uniform budgets. At four moments of the run 30 subnets get scores: the
gradient of the weights (Eq. 4) and of the budget (Eq. 8), the drop of the loss, and others that
samplers look at, each a mean over 1,000 held-out images. Then each trains for a while by itself,
from the weights of that moment and on the same batches. Kendall's tau compares each score with the
loss that this takes off on all held-out images. FLOPs are the control.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor

from benchmarks.experiments.experiment import AbstractExperiment, Case
from benchmarks.experiments.measure import loss_and_accuracy
from benchmarks.parts.lines import Row
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from models.space.relaxed import Relaxed
from trainer.data.run_data import RunData, run_data
from trainer.engine.horizon import horizon_of
from trainer.engine.interrupt import Interrupt, Stopped
from trainer.engine.optim import Schedule, build_optimizer, schedule_at, set_learning_rate
from trainer.engine.probe import LEVEL_IMAGES, BatchProbe, probe_of
from trainer.engine.seeds import seed_step
from trainer.engine.state import TrainingState, fresh_state
from trainer.engine.step import pretrain_generator, train_step
from trainer.evaluation import calibrated, gradient_norm

SUBNETS = 30
"""So many budgets; those that give the same subnet count once."""
MOMENTS = (0.2, 0.4, 0.6, 0.8)
"""Shares of the run."""
ALONE_SHARE = 0.25
"""Of an epoch, for which each subnet then trains by itself."""
SCORES = (
    "Eq. 8, one budget",
    "Eq. 8, mixed budgets",
    "gradient norm (Eq. 4)",
    "loss drop",
    "loss level",
    "influence",
    "FLOPs",
)
OLDER_NAMES = {"loss drop (Eq. 4)": "loss drop"}
"""Of scores, in logs of before."""


class Sufficiency(AbstractExperiment):
    """A case is a seed; its line has the scores and the variations of all moments."""

    def cases(self, setup: Row) -> Iterator[Case]:
        for seed in self.seeds:
            # a sampler that keeps the weights of the update before; B is never moved
            yield Case("uniform", self.base.replace(name="uniform", sampler="shift", seed=seed))

    def run_case(self, case: Case, setup: Row, interrupt: Interrupt) -> Row:
        recipe, splits = case.recipe, self.splits(case.recipe.seed)
        state, data = fresh_state(recipe, splits), run_data(recipe, splits)
        steps = horizon_of(recipe, state.sampler, len(data.train)).steps
        moments = {round(share * steps): share for share in MOMENTS}
        pretrain_generator(state, recipe, lambda step: None)
        stream = data.train.stream(0, 0)
        found: list[Row] = []
        while len(found) < len(moments):
            if interrupt.signal is not None:
                raise Stopped(interrupt.signal)
            seed_step(recipe.seed, state.step)
            schedule = schedule_at(state.step, steps, recipe, state.step)
            train_step(state, next(stream), schedule, recipe)
            if state.step + recipe.shift_every in moments:
                state.keep_weights()
            if state.step in moments:
                found.append(
                    {"share": moments[state.step], **self._moment(state, data, case, schedule)}
                )
        return {"moments": found}

    def _moment(self, state: TrainingState, data: RunData, case: Case, schedule: Schedule) -> Row:
        """Scores of subnets over the whole range, and what they learn when they train alone."""
        rng = np.random.default_rng(case.recipe.seed)
        space = state.generator.space
        budgets = np.sort(rng.uniform(space.min_flops, space.max_flops, SUBNETS)).tolist()
        held_out = data.held_out
        batches = min(len(held_out), -(-LEVEL_IMAGES // case.recipe.batch_size))
        probes = [
            probe_of(state, held_out.batch(0, index), schedule, case.recipe, data.decisions)
            for index in range(batches)
        ]
        scores: dict[str, list[float]] = {name: [] for name in SCORES}
        archs: list[Arch] = []
        for flops in budgets:
            budget = torch.tensor(flops, dtype=torch.float64, requires_grad=True)
            relaxed = probes[0].generate(budget)
            arch = relaxed.arch()
            if arch in archs:  # two budgets near each other
                continue
            archs.append(arch)
            drops, slopes, mixed = np.mean(
                [_drops(probe, relaxed, budget) for probe in probes], axis=0
            ).tolist()
            scores["Eq. 8, one budget"].append(flops * slopes)
            scores["Eq. 8, mixed budgets"].append(mixed)
            scores["loss drop"].append(drops)
            scores["loss level"].append(probes[0].level(arch))
            scores["FLOPs"].append(float(space.flops(arch)))
            norms = [
                gradient_norm(state.net, arch, held_out.batch(0, index), case.recipe.device)
                for index in range(batches)
            ]
            scores["gradient norm (Eq. 4)"].append(float(np.mean(norms)))
        scores["influence"] = np.mean(
            [probe.influences(archs) for probe in probes], axis=0
        ).tolist()
        count = max(1, round(ALONE_SHARE * len(data.train)))
        seen = [(batch.images, batch.labels) for batch in islice(data.train.stream(0, 0), count)]
        gained = [self._gained(state, data, case, schedule, arch, seen) for arch in archs]
        return {"scores": scores, "gained": gained}

    def _gained(
        self,
        state: TrainingState,
        data: RunData,
        case: Case,
        schedule: Schedule,
        arch: Arch,
        batches: Sequence[tuple[Tensor, Tensor]],
    ) -> float:
        """By how much held-out loss falls, in nats, when a subnet trains on these batches."""
        net = copy.deepcopy(state.net)
        side = net.space.resolution(arch)
        losses: list[float] = []
        optimizer = build_optimizer(net, case.recipe.optimizer)
        set_learning_rate(optimizer, schedule.learning_rate)
        for trains in (True, False):
            statistics_of = calibrated(net, arch, data.calibration, case.recipe.device)
            losses.append(loss_and_accuracy(net, arch, statistics_of, data.decisions)[0])
            for images, labels in batches if trains else ():
                optimizer.zero_grad()
                F.cross_entropy(net(at_resolution(images, side), arch), labels).backward()
                optimizer.step()
        return losses[0] - losses[1]

    def table(self, setup: Row, results: list[Row]) -> str:
        lines = [
            "| score | " + " | ".join(f"at {100 * share:.0f} %" for share in MOMENTS) + " |",
            "|---|" + "--:|" * len(MOMENTS),
        ]
        runs = [run["moments"] for run in results]
        for name in SCORES:  # of which older logs have fewer
            own = [run for run in runs if all(name in _scores(moment) for moment in run)]
            if not own:
                continue
            cells = [name if len(own) == len(runs) else f"{name}, of {len(own)} seeds"]
            for place in range(len(MOMENTS)):
                taus = [_tau(run[place], name) for run in own]
                low, high = (f"{end:+.2f}" for end in (min(taus), max(taus)))
                cells.append(f"{statistics.mean(taus):+.2f} ({low} to {high})")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append(f"\n{len(runs)} seeds: mean Kendall's tau, lowest and highest.")
        return "\n".join(lines)


def _drops(probe: BatchProbe, relaxed: Relaxed, budget: Tensor) -> tuple[float, float, float]:
    """What fell since the update before, on a batch: the loss, and two slopes of it.

    One is for the budget, the other for the weight of the budget's features.
    """
    losses: list[float] = []
    slopes: list[float] = []
    mixed: list[float] = []
    for before in (True, False):
        loss = probe.loss(relaxed, before=before)
        (slope,) = torch.autograd.grad(loss, budget, retain_graph=True)
        losses.append(float(loss.detach()))
        slopes.append(float(slope))
        _, weights = probe.mixing_gradient(relaxed, [float(budget.detach())], before=before)
        mixed.append(float(weights[0]))
    return losses[0] - losses[1], slopes[0] - slopes[1], mixed[0] - mixed[1]


def _scores(moment: Row) -> dict[str, list[float]]:
    return {OLDER_NAMES.get(name, name): values for name, values in moment["scores"].items()}


def _tau(moment: Row, name: str) -> float:
    return float(kendalltau(_scores(moment)[name], moment["gained"]).statistic)
