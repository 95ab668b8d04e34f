"""Which sampler trains best: every one against uniform budgets and the best static tilt.

All train as long as uniform budgets do by two accounts: the same multiply-adds, and the same time.
Time is modelled: counted in multiply-adds as well, with what a step and what each pass cost beside
their FLOPs (``overheads``), fitted to steps and passes of a frozen ladder that took turns. What a
sampler asks of the supernet on held-out images is counted in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks.experiments.alone import alone_curve
from benchmarks.experiments.experiment import AbstractExperiment, Case
from benchmarks.experiments.ladder import ladder, part_times
from benchmarks.experiments.table import paired_table
from benchmarks.parts.lines import Row
from benchmarks.parts.timing import machine
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets
from models.space.arch import Arch
from trainer.data.run_data import batches_of
from trainer.engine.horizon import FORWARD_AND_BACKWARD, masked_and_sliced_flops
from trainer.evaluation import answers
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import SamplerOptions
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
OVERHEADS = ("step_flops", "pass_flops", "forward_weight")


class Samplers(AbstractExperiment):
    """Stage B of the evidence: archs are the generator's, as in any run."""

    def setup(self) -> Row:
        archs = ladder(self.space, RUNGS)
        taken = part_times(self.base, archs, self.splits(0))
        flops = [self.space.flops(arch) for arch in archs]
        return {"flops": flops, **taken, **overheads(flops, taken), "machine": machine()}

    def cases(self, setup: Row) -> Iterator[Case]:
        fitted = {name: setup[name] for name in OVERHEADS}
        for seed, account, name in product(self.seeds, ACCOUNTS, SAMPLERS):
            recipe = recipe_of(self.base, name, fitted if account == "time" else {})
            yield Case(
                f"{name}/{account}",
                recipe.replace(seed=seed, compute=self._compute(recipe.sampler_options)),
            )

    def _compute(self, options: SamplerOptions) -> float:
        """What uniform budgets take for the epochs of the scale."""
        base = self.base
        sampler = build_sampler("uniform-budget", self.space, options)
        train = batches_of(base, self.splits(0), self.splits(0).train, train=True)
        steps = base.epochs * len(train)
        return (
            FORWARD_AND_BACKWARD * base.batch_size * steps * masked_and_sliced_flops(base, sampler)
        )

    def archs(self, setup: Row, generator: ArchitectureGenerator) -> list[Arch]:
        return answers(generator, even_budgets(self.space, RUNGS))

    def table(self, setup: Row, results: list[Row]) -> str:
        alone = alone_curve(self.folder.parent / "ranking", setup)
        table = paired_table(results, ACCOUNTS, SAMPLERS, lambda of: f"uniform/{of}", alone)
        if alone is None:
            return (
                f"{table}\n\nRun `ranking` beside it, as long and on the same images: then the "
                "table has the worst regret, too."
            )
        return table


def recipe_of(base: Recipe, name: str, counted: Mapping[str, float]) -> Recipe:
    """A run with a sampler of this name. counted: OVERHEADS, or nothing for multiply-adds."""
    sampler, changes = SAMPLERS[name]
    options = base.sampler_options.replace(**counted, **changes)
    return base.replace(name=name, sampler=sampler, sampler_options=options)


def overheads(flops: Sequence[int], taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How time is counted as FLOPs (``SamplerOptions``), of what ``part_times`` took.

    A pass takes ms_per_flop (flops + pass_flops): the line through them. What a step takes longer
    than its pass does not follow FLOPs.
    """
    ms_per_flop, constant_ms = np.polyfit(flops, taken["pass_ms"], 1)
    step_ms, pass_ms, forward_ms = (np.mean(taken[n]) for n in ("step_ms", "pass_ms", "forward_ms"))
    return {
        "step_flops": round(max(float((step_ms - pass_ms) / ms_per_flop), 0.0)),
        "pass_flops": round(max(float(constant_ms / ms_per_flop), 0.0)),
        "forward_weight": round(float(FORWARD_AND_BACKWARD * forward_ms / pass_ms), 3),
    }
