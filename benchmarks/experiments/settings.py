"""Figures 7 and 8 of the paper: how many groups, and how often B moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, ClassVar

from benchmarks.experiments.experiment import AbstractExperiment, Case
from benchmarks.experiments.table import paired_table
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets
from models.space.arch import Arch
from trainer.engine.log import Record
from trainer.evaluate import answers

EPOCHS = "epochs"


class AbstractSettings(AbstractExperiment):
    """The paper's ``shift`` with other settings, for the same epochs, as the paper compares."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Name -> settings; the first one is what the others are compared with."""

    def setup(self) -> Record:
        return {}

    def cases(self, setup: Record) -> Iterator[Case]:
        for seed, (name, settings) in product(self.seeds, self.variants.items()):
            changes = dict(settings)
            options = {"learning_rate": 0.05, **changes.pop("sampler_options", {})}
            recipe = self.base.replace(
                name=name,
                sampler="shift",
                seed=seed,
                sampler_options=self.base.sampler_options.replace(**options),
                **changes,
            )
            yield Case(f"{name}/{EPOCHS}", recipe)

    def archs(self, setup: Record, generator: ArchitectureGenerator) -> list[Arch]:
        return answers(generator, even_budgets(self.space, 8))

    def table(self, setup: Record, results: list[Record]) -> str:
        first = next(iter(self.variants))
        return paired_table(results, (EPOCHS,), self.variants, lambda _: f"{first}/{EPOCHS}")


class Groups(AbstractSettings):
    """Figure 7: steps of 0.2, 0.1 and 0.05 GFLOPs over vit-tiny's range are 3, 6 and 12 groups."""

    variants: ClassVar = {
        f"{count} groups": {"sampler_options": {"groups": count}} for count in (6, 3, 12)
    }


class UpdateEvery(AbstractSettings):
    """Figure 8: q is 50, 100, 500 and 1,000 of 625,000 steps; here of a run's few thousand."""

    variants: ClassVar = {f"q = {every}": {"shift_every": every} for every in (25, 12, 100, 250)}
