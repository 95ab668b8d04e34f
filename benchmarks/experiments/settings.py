"""Figures 4, 5, 7 and 8 of the paper: with and without the shift, how many groups, how often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.experiments.experiment import AbstractExperiment, Case
from benchmarks.experiments.table import by_case, paired_table
from benchmarks.parts.lines import Row
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets
from models.space.arch import Arch
from trainer.engine.log import read_log
from trainer.evaluation import answers

EPOCHS = "epochs"


class AbstractSettings(AbstractExperiment):
    """The paper's ``shift`` with other settings, for the same epochs, as the paper compares."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Name -> settings; the first one is what the others are compared with."""

    def cases(self, setup: Row) -> Iterator[Case]:
        for seed, (name, settings) in product(self.seeds, self.variants.items()):
            changes = dict(settings)
            options = {"learning_rate": 0.05, **changes.pop("sampler_options", {})}
            recipe = self.base.replace(
                name=name,
                sampler=changes.pop("sampler", "shift"),
                seed=seed,
                sampler_options=self.base.sampler_options.replace(**options),
                **changes,
            )
            yield Case(f"{name}/{EPOCHS}", recipe)

    def kept(self, case: Case, folder: Path, archs: list[Arch]) -> Row:
        """B at the end of each quarter of the run, and where it stays after the last update."""
        updates = [r for r in read_log(folder / "log.jsonl") if r["kind"] == "groups"]
        quarters = (
            [updates[max(len(updates) * part // 4 - 1, 0)] for part in (1, 2, 3, 4)]
            if updates
            else []
        )
        return {"probabilities": [record["probabilities"] for record in quarters]}

    def archs(self, setup: Row, generator: ArchitectureGenerator) -> list[Arch]:
        return answers(generator, even_budgets(self.space, 8))

    def table(self, setup: Row, results: list[Row]) -> str:
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


class Shift(AbstractSettings):
    """Figure 4: the same training with and without the shift. Figure 5: B over the run."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "uniform": {"sampler": "uniform-budget"},
        "shift": {},
        "shift, as printed": {"sampler_options": {"as_printed": True}},
    }

    def table(self, setup: Row, results: list[Row]) -> str:
        head = " | ".join(str(place) for place in range(1, self.base.sampler_options.groups + 1))
        lines = [
            super().table(setup, results),
            "",
            "B in %, mean over seeds, by group from the smallest subnets to the largest:",
            "",
            f"| name | after | {head} |",
            "|---|---|" + "--:|" * self.base.sampler_options.groups,
        ]
        found = by_case(results)
        for name in self.variants:
            runs = found.get(f"{name}/{EPOCHS}", {}).values()
            moved = np.array([run["probabilities"] for run in runs if run["probabilities"]])
            for quarter, shares in enumerate(100 * moved.mean(0) if len(moved) else (), start=1):
                cells = " | ".join(f"{share:.1f}" for share in shares)
                lines.append(f"| {name} | {quarter}/4 | {cells} |")
        return "\n".join(lines)
