"""What any sampler can win: static distributions over a frozen ladder of archs.

Each distribution trains as long as uniform does by three accounts: the same number of steps, the
same multiply-adds, and the same time. Time is that of one thread on the processor (another
process on the machine does not count), by what a step of each arch took when all took turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from benchmarks.experiments.experiment import AbstractExperiment, Case
from benchmarks.experiments.ladder import ladder, step_times
from benchmarks.experiments.table import paired_table
from benchmarks.parts.lines import Row
from benchmarks.parts.timing import machine
from models.generator.network import ArchitectureGenerator
from models.space.arch import Arch
from trainer.data.run_data import batches_of
from trainer.engine.horizon import FORWARD_AND_BACKWARD
from trainer.recipes.recipe import Recipe
from trainer.samplers.fixed.static_tilt import tilted

RUNGS = 8
DISTRIBUTIONS: dict[str, tuple[tuple[float, float], float]] = {
    "uniform": ((0, 0), 0),
    "small-2": ((-2, -2), 0),
    "small-4": ((-4, -4), 0),
    "large-2": ((2, 2), 0),
    "small-then-large": ((-2, 2), 0),
    "large-then-small": ((2, -2), 0),
    "ends": ((0, 0), 2),
    "small-1": ((-1, -1), 0),
    "large-1": ((1, 1), 0),
    "large-4": ((4, 4), 0),
    "small-then-uniform": ((-4, 0), 0),
    "small-6": ((-6, -6), 0),
}
"""Name -> tilt at the start and at the end, and bend (``trainer.samplers.fixed.static_tilt``)."""

FIRST = 3
"""So many of them run on every seed before the others do."""

ACCOUNTS = ("multiply-adds", "time", "steps")


class StaticTilts(AbstractExperiment):
    """Stage A of the evidence."""

    def setup(self) -> Row:
        archs = ladder(self.space, RUNGS)
        documents = [self.space.arch_to_json(arch) for arch in archs]
        flops = [self.space.flops(arch) for arch in archs]
        step_ms = step_times(self.base, archs, self.splits(0))
        return {"ladder": documents, "flops": flops, "step_ms": step_ms, "machine": machine()}

    def cases(self, setup: Row) -> Iterator[Case]:
        # equal steps last: they are what others report, and decide nothing here
        few, more = list(DISTRIBUTIONS)[:FIRST], list(DISTRIBUTIONS)[FIRST:]
        for accounts, names in (
            (ACCOUNTS[:2], few),
            (ACCOUNTS[:2], more),
            (ACCOUNTS[2:], few + more),
        ):
            for seed, account, name in product(self.seeds, accounts, names):
                if name == "uniform" and account != ACCOUNTS[0]:
                    continue  # the same run by every account
                compute = self.compute_of(setup, name, account)
                recipe = recipe_of(self.base, setup["ladder"], name, compute=compute)
                yield Case(f"{name}/{account}", recipe.replace(seed=seed))

    def compute_of(self, setup: Row, name: str, account: str) -> float:
        """Multiply-adds that a distribution may spend to be uniform's equal by an account."""
        flops = np.array(setup["flops"])
        times = np.array(setup["step_ms"])
        train = batches_of(self.base, self.splits(0), self.splits(0).train, train=True)
        steps = self.base.epochs * len(train)
        a_step = FORWARD_AND_BACKWARD * self.base.batch_size
        if account == "multiply-adds":
            return steps * a_step * float(flops.mean())
        # along the run, of which schedules know how much of the multiply-adds is spent
        tilt, bend = DISTRIBUTIONS[name]
        along = np.array([tilted(len(flops), tilt, bend, u) for u in np.linspace(0, 1, 101)])
        per_step = along @ flops
        spent = 1 / per_step if account == "steps" else along @ times / per_step
        allowed = steps if account == "steps" else steps * float(times.mean())
        return a_step * allowed / float(np.trapezoid(spent, dx=0.01))

    def archs(self, setup: Row, generator: ArchitectureGenerator) -> list[Arch]:
        return [self.space.arch_from_json(document) for document in setup["ladder"]]

    def table(self, setup: Row, results: list[Row]) -> str:
        return paired_table(results, ACCOUNTS, DISTRIBUTIONS, lambda _: "uniform/multiply-adds")


def recipe_of(base: Recipe, documents: Sequence[object], name: str, *, compute: float) -> Recipe:
    """A run on a ladder with a distribution of this name."""
    tilt, bend = DISTRIBUTIONS[name]
    options = base.sampler_options.replace(archs=tuple(documents), tilt=tilt, bend=bend)
    generator = base.generator.replace(pretrain_steps=0, resource_batch=1)
    return base.replace(
        name=name,
        sampler="static-tilt",
        sampler_options=options,
        generator=generator,
        compute=compute,
    )
