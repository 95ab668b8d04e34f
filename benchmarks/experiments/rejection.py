"""Figure 9 of the paper: an arch for a budget, by the generator or by drawing until one fits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.experiments.experiment import AbstractExperiment
from benchmarks.experiments.ladder import taught_generator
from benchmarks.experiments.uniform_archs import uniform_flops
from benchmarks.parts.lines import Row
from benchmarks.parts.timing import machine
from models.generator.answer import answer_within
from models.generator.report import even_budgets, policy_of
from models.space.arch import Arch
from models.spaces import get_space

SPACES = ("nano-cnn", "cifar-cnn", "cifar-vit")
BUDGETS = 7
ARCHS, ROUNDS = 200_000, 10


class Rejection(AbstractExperiment):
    """No training but the generator's on its budgets: everything is in ``setup``.

    A draw fits if its FLOPs lie within the budget and are at least those of the generator's answer.
    What rejection takes is the time of a draw over the share of 200,000 that fit. The budget of the
    largest subnet is left out, which nobody has to look for.
    """

    trains = False

    def setup(self) -> Row:
        return {"machine": machine(), **{n: _measure(n) for n in SPACES}}

    def table(self, setup: Row, results: list[Row]) -> str:
        lines = [
            "| space | budget, share of the range | generator, ms | rejection, ms | times |",
            "|---|--:|--:|--:|--:|",
        ]
        for space in SPACES:
            for row in setup[space]:
                fits = row["fits"]
                waits = row["draw_ms"] / max(fits, 1 / ARCHS)
                more = "" if fits else "> "
                lines.append(
                    f"| {space} | {row['share']:.2f} | {row['generator_ms']:.2f} "
                    f"| {more}{waits:,.1f} | {more}{waits / row['generator_ms']:,.0f} |"
                )
        return "\n".join(lines)


def _measure(name: str) -> list[dict[str, float]]:
    """A row for each of some even budgets."""
    space = get_space(name)
    generator = taught_generator(space)
    policy, rng = policy_of(generator), np.random.default_rng(0)
    flops = uniform_flops(space, ARCHS, rng)
    draw_ms = _median_ms(lambda: space.flops(space.random_arch(rng)))
    rows = []
    for budget in even_budgets(space, BUDGETS)[:-1]:

        def answer(budget: float = budget) -> Arch:
            return answer_within(policy, budget)

        least = space.flops(answer())
        rows.append(
            {
                "share": (budget - space.min_flops) / (space.max_flops - space.min_flops),
                "generator_ms": _median_ms(answer),
                "draw_ms": draw_ms,
                "fits": float(((flops <= budget) & (flops >= least)).mean()),
            }
        )
    return rows


def _median_ms(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        call()
        taken.append(1000 * (time.process_time() - started))
    return statistics.median(taken)
