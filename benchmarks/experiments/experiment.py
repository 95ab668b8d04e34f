"""AbstractExperiment: a list of runs, each a line of results, and a table of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.experiments.images import cached_splits
from benchmarks.experiments.measure import measured
from models.generator.network import ArchitectureGenerator
from models.space.arch import Arch
from models.spaces import get_space
from trainer.data.splits import Splits
from trainer.engine.checkpoint import has_checkpoint, load_checkpoint
from trainer.engine.interrupt import Interrupt
from trainer.engine.log import Record
from trainer.engine.provenance import provenance
from trainer.loop import train
from trainer.recipes.recipe import Recipe

RESULTS_NAME = "results.jsonl"
SETUP_NAME = "setup.json"


@dataclass(frozen=True)
class Case:
    """One run: what it is called in the results, and its recipe (whose seed is the run's).

    archs: what is measured of it, if not what is measured of all runs.
    """

    name: str
    recipe: Recipe
    archs: tuple[Arch, ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.recipe.seed


class AbstractExperiment(ABC):
    """Runs in the order of ``cases``; those that have a line in the results are done.

    base: the recipe of the scale, its ``data`` as it was asked for. folder: of the results.
    """

    def __init__(self, base: Recipe, folder: Path, seeds: list[int]) -> None:
        self.base, self.folder, self.seeds = base, folder, seeds
        self.space = get_space(base.space, 10)
        self.splits = cache(self._splits)

    def _splits(self, seed: int) -> Splits:
        base = self.base
        file = self.folder.parent / f"{base.name}-{base.resolution}.npz"
        return cached_splits(file, base.data, base.resolution, base.held_out_share, seed)

    @abstractmethod
    def setup(self) -> Record:
        """What all runs share, made once and kept in ``setup.json``."""

    @abstractmethod
    def cases(self, setup: Record) -> Iterator[Case]:
        """All runs, in an order in which the first few already say something."""

    @abstractmethod
    def archs(self, setup: Record, generator: ArchitectureGenerator) -> list[Arch]:
        """What is measured of a run, whose generator this is."""

    @abstractmethod
    def table(self, setup: Record, results: list[Record]) -> str:
        """What the results say."""

    def run(self) -> None:
        """Do what is not done yet. A signal ends it between two steps and loses nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETUP_NAME
        if not path.is_file():
            path.write_text(json.dumps(self.setup(), indent=1) + "\n", encoding="utf-8")
        setup = self.kept_setup()
        done = {(row["case"], row["seed"]) for row in self.results()}
        with Interrupt() as interrupt:
            for case in self.cases(setup):
                if case.key not in done:
                    self._run(case, setup, interrupt)

    def _run(self, case: Case, setup: Record, interrupt: Interrupt) -> None:
        folder = self.folder / f"{case.name}-{case.recipe.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        splits, resume = self.splits(case.recipe.seed), has_checkpoint(folder)
        started, cpu = time.monotonic(), time.process_time()
        train(case.recipe, splits, folder, interrupt, resume=resume)
        cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - started
        state = load_checkpoint(folder)
        generator = ArchitectureGenerator(self.space)
        generator.load_state_dict(state["generator"])
        archs = case.archs or self.archs(setup, generator)
        row: Record = {
            "case": case.name,
            "seed": case.recipe.seed,
            "steps": int(state["step"]),
            "compute": int(state["compute"]),
            "cpu_s": None if resume else round(cpu_s, 2),
            "wall_s": None if resume else round(wall_s, 2),
            "commit": provenance()["commit"],
            "rows": measured(case.recipe, splits, folder, archs),
        }
        with (self.folder / RESULTS_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for left in folder.glob("checkpoint*"):
            left.unlink()
        print(f"{case.name} seed {case.recipe.seed}: {cpu_s:.0f} s", file=sys.stderr)

    def kept_setup(self) -> Record:
        """What ``setup`` made. Raises ValueError before the first run."""
        path = self.folder / SETUP_NAME
        if not path.is_file():
            raise ValueError(f"{path} is not there: run the experiment first, without --table")
        return json.loads(path.read_text(encoding="utf-8"))

    def results(self) -> list[Record]:
        """What was measured so far."""
        path = self.folder / RESULTS_NAME
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add_arguments(parser: argparse.ArgumentParser, scales: list[str]) -> None:
    """What every experiment is asked with."""
    parser.add_argument("--scale", choices=scales, default="nano")
    parser.add_argument("--data", help="CIFAR-10, as for trainer.run (digits need none)")
    parser.add_argument("--seeds", type=int, default=8, help="how many (default: 8)")
    parser.add_argument("--out", type=Path, help="folder (default: runs/experiments/NAME)")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")


def based(recipe: Recipe, data: str | None) -> Recipe:
    """The recipe of a scale on the data that was asked for."""
    return recipe.replace(data=data) if data else recipe
