"""Which sampler trains best: every one against uniform budgets and the best static tilt.

All train as long as uniform budgets do by two accounts: the same multiply-adds, and the same time.
Time is counted in multiply-adds as well, with what a pass costs beside its FLOPs
(``sampler_options.step_flops``), fitted to the steps of a frozen ladder that took turns. What a
sampler asks of the supernet on held-out images is counted in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, cast

import numpy as np

from benchmarks.experiments.alone import alone_curve
from benchmarks.experiments.experiment import RESULTS_NAME, AbstractExperiment, Case
from benchmarks.experiments.ladder import ladder, step_times
from benchmarks.experiments.table import paired_table
from benchmarks.parts.timing import machine
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets
from models.space.arch import Arch
from trainer.data.run_data import batches_of
from trainer.engine.horizon import FORWARD_AND_BACKWARD, mean_step_flops
from trainer.engine.log import Record
from trainer.evaluation import answers
from trainer.recipes.recipe import Recipe
from trainer.samplers import build_sampler

RUNGS = 8
SAMPLERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "uniform": ("uniform-budget", {}),
    "tilt-4": ("static-tilt", {"tilt": (-4.0, -4.0)}),
    "learned-tilt": ("learned-tilt", {"learning_rate": 0.5}),
    "influence": ("influence", {}),
    "shift": ("shift", {"learning_rate": 0.05}),
    "regret": ("regret", {}),
    "shift-features": ("shift-features", {"learning_rate": 0.05}),
    "shift-direct": ("shift-direct", {"learning_rate": 0.05}),
    "sandwich": ("sandwich", {}),
    "headroom": ("headroom", {"learning_rate": 0.05}),
    "uniform-arch": ("uniform-arch", {}),
}
"""Name -> sampler and its options. The tilt is the one that did best in ``static-tilts``."""

ACCOUNTS = ("multiply-adds", "time")


class Samplers(AbstractExperiment):
    """Stage B of the evidence: archs are the generator's, as in any run."""

    def setup(self) -> Record:
        archs = ladder(self.space, RUNGS)
        step_ms = step_times(self.base, archs, self.splits(0))
        flops = [self.space.flops(arch) for arch in archs]
        slope, constant = np.polyfit(flops, step_ms, 1)
        return cast(
            "Record",
            {
                "flops": flops,
                "step_ms": step_ms,
                "step_flops": round(float(max(constant, 0.0) / slope)),
                "machine": machine(),
            },
        )

    def cases(self, setup: Record) -> Iterator[Case]:
        for seed, account, name in product(self.seeds, ACCOUNTS, SAMPLERS):
            beside = cast("float", setup["step_flops"]) if account == "time" else 0.0
            recipe = recipe_of(self.base, name, float(beside))
            yield Case(
                f"{name}/{account}", recipe.replace(seed=seed, compute=self._compute(float(beside)))
            )

    def _compute(self, step_flops: float) -> float:
        """What uniform budgets take for the epochs of the scale."""
        base = self.base
        sampler = build_sampler("uniform-budget", self.space, base.sampler_options)
        train = batches_of(base, self.splits(0), self.splits(0).train, train=True)
        share = 1 / base.generator.masked_every
        mean = share * mean_step_flops(sampler, masked=True)
        mean += (1 - share) * mean_step_flops(sampler, masked=False) + step_flops
        return FORWARD_AND_BACKWARD * base.batch_size * base.epochs * len(train) * mean

    def archs(self, setup: Record, generator: ArchitectureGenerator) -> list[Arch]:
        return answers(generator, even_budgets(self.space, RUNGS))

    def table(self, setup: Record, results: list[Record]) -> str:
        alone = alone_curve(self.folder.parent / "ranking" / RESULTS_NAME)
        table = paired_table(results, ACCOUNTS, SAMPLERS, lambda of: f"uniform/{of}", alone)
        if alone is None:
            return f"{table}\n\nRun `ranking` beside it: then the table has the worst regret, too."
        return table


def recipe_of(base: Recipe, name: str, step_flops: float) -> Recipe:
    """A run with a sampler of this name."""
    sampler, changes = SAMPLERS[name]
    options = base.sampler_options.replace(step_flops=step_flops, **changes)
    return base.replace(name=name, sampler=sampler, sampler_options=options)
