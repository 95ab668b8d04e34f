"""AbstractExperiment: a list of runs, each a line of results, and a table of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from benchmarks.experiments.images import cache_name, cached_splits, fingerprint
from benchmarks.experiments.measure import measured
from benchmarks.parts.kept import refuse_other
from benchmarks.parts.lines import Row, read_lines
from models.generator.network import ArchitectureGenerator
from models.space.arch import Arch
from models.spaces import get_space
from trainer.data.splits import Splits
from trainer.engine.checkpoint import State, has_checkpoint, load_checkpoint, save_checkpoint
from trainer.engine.disk import write_whole
from trainer.engine.interrupt import Interrupt
from trainer.engine.log import add_line
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

    name: of the experiment. base: the recipe of the scale, its ``data`` as it was asked for.
    folder: of the results. only: names of cases, whole or up to the slash; empty for all.
    """

    trains: ClassVar[bool] = True
    """Whether there are runs, and so images."""

    def __init__(
        self, name: str, base: Recipe, folder: Path, seeds: list[int], only: Collection[str] = ()
    ) -> None:
        self.name, self.base, self.folder, self.seeds, self.only = name, base, folder, seeds, only
        self.space = get_space(base.space, 10)
        self.splits = cache(self._splits)

    def _splits(self, seed: int) -> Splits:
        base = self.base
        name = f"{base.name}-{base.resolution}-{cache_name(base.data)}.npz"
        file = self.folder.parent / name
        return cached_splits(file, base.data, base.resolution, base.held_out_share, seed)

    def setup(self) -> Row:
        """What all runs share, made once and kept in ``setup.json``."""
        return {}

    def cases(self, setup: Row) -> Iterator[Case]:
        """All runs, in an order in which the first few already say something."""
        yield from ()

    def names(self, setup: Row) -> list[str]:
        """Of all cases, before anything is trained."""
        return [case.name for case in self.cases(setup)]

    def archs(self, setup: Row, generator: ArchitectureGenerator) -> list[Arch]:
        """What is measured of a run, whose generator this is."""
        raise AssertionError("runs of this experiment are not measured at their end")

    @abstractmethod
    def table(self, setup: Row, results: list[Row]) -> str:
        """What the results say."""

    def run(self) -> None:
        """Do what is not done yet. A signal ends it between two steps and loses nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, own = self.folder / SETUP_NAME, self._own(data=True)
        if not path.is_file():
            write_whole(path, json.dumps(own | self.setup(), indent=1) + "\n")
        setup = self._checked(own)
        if self.only:
            self._check_only(self.names(setup))
        done = {(row["case"], row["seed"]) for row in self.results()}
        commit = provenance()["commit"]  # of the code that this process has read
        with Interrupt() as interrupt:
            for case in self.cases(setup):
                if case.key in done or not self._wanted(case):
                    continue
                cpu = time.process_time()
                row = {"case": case.name, "seed": case.recipe.seed}
                row |= {"commit": commit, **self.run_case(case, setup, interrupt)}
                add_line(self.folder / RESULTS_NAME, row)
                cpu = time.process_time() - cpu
                print(f"{case.name} seed {case.recipe.seed}: {cpu:.0f} s", file=sys.stderr)

    def _check_only(self, there: Iterable[str]) -> None:
        """Raises ValueError where a name was asked for that no case has."""
        names = dict.fromkeys(part for name in there for part in (name.split("/")[0], name))
        for name in self.only:
            if name not in names:
                raise ValueError(f"--only {name} is not a case; there are {', '.join(names)}")

    def _wanted(self, case: Case) -> bool:
        return not self.only or case.name in self.only or case.name.split("/")[0] in self.only

    def first_state(self, case: Case) -> State | None:
        """The checkpoint that a run begins at; None where it begins untrained."""
        return None

    def kept(self, case: Case, folder: Path, archs: list[Arch]) -> Row:
        """More for the line of a run that has ended, while its checkpoint is there."""
        return {}

    def run_case(self, case: Case, setup: Row, interrupt: Interrupt) -> Row:
        """Train, measure, and tell what the line of the results has."""
        folder = self.folder / f"{case.name}-{case.recipe.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        splits, resume = self.splits(case.recipe.seed), has_checkpoint(folder)
        first = None if resume else self.first_state(case)
        if first is not None:
            save_checkpoint(folder, first)
        started, cpu = time.monotonic(), time.process_time()
        train(case.recipe, splits, folder, interrupt, resume=has_checkpoint(folder))
        cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - started
        state = load_checkpoint(folder)
        generator = ArchitectureGenerator(self.space)
        generator.load_state_dict(state["generator"])
        archs = list(case.archs) or self.archs(setup, generator)
        row: Row = {
            "steps": int(state["step"]),
            "compute": int(state["compute"]),
            "cpu_s": None if resume else round(cpu_s, 2),
            "wall_s": None if resume else round(wall_s, 2),
            "rows": measured(case.recipe, splits, folder, archs),
            **self.kept(case, folder, archs),
        }
        for left in folder.glob("checkpoint*"):
            left.unlink()
        return row

    def table_of(self, seeds: Collection[int] | None = None, *, data: bool = False) -> str:
        """The table of the runs that the folder holds, all or those of some seeds.

        data: whether theirs has to be the recipe's. Raises ValueError for runs of something else,
        and for logs that lack what the table needs.
        """
        setup = self._checked(self._own(data=data))
        results = [row for row in self.results() if seeds is None or row.get("seed") in seeds]
        if self.trains and not results:
            raise ValueError(
                f"{self.folder} does not hold such runs yet; run them first, without --table"
            )
        try:
            return self.table(setup, results)
        except LookupError as error:
            raise ValueError(
                f"{self.folder} lacks {error}, which {self.name} needs: its logs are of another "
                "experiment or of an older commit; name another folder (--out)"
            ) from error

    def _own(self, *, data: bool) -> Row:
        """What tells the runs of a folder from others."""
        own: Row = {"experiment": self.name, "scale": self.base.name, "epochs": self.base.epochs}
        return own | ({"data": fingerprint(self.splits(0))} if self.trains and data else {})

    def _checked(self, own: Row) -> Row:
        """The folder's setup. Raises ValueError for one of other runs."""
        setup = kept_setup(self.folder)
        # one of an older commit does not name its experiment
        refuse_other(self.folder, {"experiment": self.name, **setup}, own)
        return setup

    def results(self) -> list[Row]:
        """What was measured so far."""
        path = self.folder / RESULTS_NAME
        return read_lines(path) if path.is_file() else []


def kept_setup(folder: Path) -> Row:
    """What ``setup`` made. Raises ValueError before the first run."""
    path = folder / SETUP_NAME
    if not path.is_file():
        raise ValueError(f"{path} is not there: run the experiment first, without --table")
    try:
        setup = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        setup = None
    if not isinstance(setup, dict):
        raise ValueError(f"{path} is not a JSON object; restore it, or name another folder (--out)")
    return setup


def add_arguments(parser: argparse.ArgumentParser, scales: list[str]) -> None:
    """What every experiment is asked with."""
    parser.add_argument(
        "--scale", choices=scales, help="default: nano; with --table that of the runs"
    )
    parser.add_argument("--epochs", type=int, help="epochs of a run (default: the scale's)")
    parser.add_argument("--data", help="CIFAR-10, as for trainer.run (digits need none)")
    parser.add_argument(
        "--seeds", type=int, help="number of seeds (default: 8; with --table all there are)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: runs/experiments/NAME)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="NAME",
        help="run these variants only, such as shift or shift/time (default: all)",
    )
    parser.add_argument("--table", action="store_true", help="only print the table of the results")


def based(recipe: Recipe, data: str | None, epochs: int | None = None) -> Recipe:
    """The recipe of a scale on the data, and as long, as was asked for. Raises ValueError."""
    if epochs is not None and epochs < 1:
        raise ValueError(f"{epochs} epochs were given; a run has 1 or more")
    recipe = recipe.replace(data=data) if data else recipe
    return recipe if epochs is None else recipe.replace(epochs=epochs)
