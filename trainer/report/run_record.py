"""RunRecord: what a training run left on disk, read once for reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from trainer.engine.log import JsonValue, Record, number, numbers, read_log

LOG_NAME = "log.jsonl"
RECIPE_NAME = "recipe.json"
FRONTIER_NAME = "frontier.json"
RENAMED = {"val_accuracy": "held_out_accuracy"}
"""Fields that runs of before 2026-11-30 call otherwise."""


@dataclass(frozen=True)
class RunRecord:
    """Log records, and frontier rows by budget (none before the run's end).

    recipe: of the last process of the run; empty if the run has no recipe.json.
    """

    name: str
    recipe: Record
    records: list[Record]
    frontier: list[Record]

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind, in the order they were written."""
        return [record for record in self.records if record["kind"] == kind]

    def setting(self, name: str) -> str:
        """Of the recipe, as text; empty where it is not known."""
        return str(self.recipe.get(name, ""))

    def start(self, field: str) -> JsonValue:
        """What the first process of the run wrote when it started."""
        return next((record.get(field) for record in self.of_kind("start")), None)

    def images(self, field: str) -> int:
        """How many images an accuracy was measured on; 0 if the log does not say."""
        images = self.start("images")
        place = {"held_out_accuracy": 1, "test_accuracy": 2}[field]
        return int(str(images[place])) if isinstance(images, list) and len(images) == 3 else 0

    @cached_property
    def step(self) -> int:
        """The last step that the log knows of."""
        steps = [number(record, "step") for record in self.records if "step" in record]
        return int(max(steps, default=0))

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole schedule, as the last process had it."""
        starts = self.of_kind("start")
        return int(number(starts[-1], "total_steps")) if starts else None

    @property
    def seconds(self) -> float | None:
        """From the first step to the last logged one, evaluations included; resumes are not."""
        steps = [record for record in self.of_kind("step") if "elapsed_s" in record]
        return number(steps[-1], "elapsed_s") if steps else None

    @property
    def groups(self) -> list[float]:
        """Upper ends of the FLOPs groups, ascending; empty if B never moved."""
        records = self.of_kind("groups")
        return numbers(records[-1], "groups") if records else []

    def trained(self) -> list[float]:
        """FLOPs of every subnet that the log tells of.

        Old logs have the last subnet of every logged step alone.
        """
        flops = [
            each
            for record in self.of_kind("step")
            for each in _list(record.get("drawn_flops", record.get("flops")))
        ]
        return [float(each) for each in flops if isinstance(each, int | float)]

    def group_answers(self) -> list[Record]:
        """What is served at the upper end of each group: rows with budget_flops, flops, arch.

        From the answers at the end of the run; before it, from the last evaluation at its budgets.
        """
        answers = self.of_kind("answers")
        if answers and self.groups:
            served = [row for row in rows_of(answers[-1]) if row.get("served")]
            served.sort(key=lambda row: number(row, "flops"))
            found: list[Record] = []
            for upper in self.groups:
                within = [row for row in served if number(row, "flops") <= upper]
                found += [{**row, "budget_flops": upper} for row in within[-1:]]
            return found
        evaluations = self.of_kind("evaluation")
        rows = self.frontier or (rows_of(evaluations[-1]) if evaluations else [])
        return [row for row in rows if isinstance(row.get("arch"), Mapping)]


def rows_of(record: Record) -> list[Record]:
    """The field ``rows`` of a record. Raises ValueError unless it is a list of objects."""
    return _objects(record.get("rows"), f"rows of a record of kind {record['kind']}")


def read_run(folder: Path) -> RunRecord:
    """Raises ValueError, in one line, for a folder or a file in it that is missing or broken."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the output folder of a training run")
    recipe, path = _read_json(folder / RECIPE_NAME), folder / FRONTIER_NAME
    if not isinstance(recipe, dict):
        raise ValueError(f"{folder / RECIPE_NAME} must be an object, as a run writes it")
    frontier = _objects(_read_json(path) or [], str(path))
    for row in frontier:
        number(row, "flops")
    frontier.sort(key=lambda row: number(row, "budget_flops"))
    return RunRecord(folder.resolve().name, recipe, read_log(folder / LOG_NAME), frontier)


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """The runs, each with a name of its own. Raises ValueError for runs that cannot be compared."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    runs = [
        run if names.count(run.name) == 1 else replace(run, name=str(folder))
        for run, folder in zip(runs, folders, strict=True)
    ]
    first = runs[0]
    for run in runs[1:]:
        for what, one, other in (
            ("space", first.setting("space"), run.setting("space")),
            ("data", first.start("data"), run.start("data")),
            ("images (train, held out, test)", first.start("images"), run.start("images")),
        ):
            if one != other:
                raise ValueError(
                    f"{first.name} and {run.name} cannot be compared: {what} {one} and {other}; "
                    "give runs of one space on the same images"
                )
    return runs


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


def _objects(value: JsonValue, what: str) -> list[Record]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{what} must be a list of objects")
    rows = [entry for entry in value if isinstance(entry, dict)]
    return [{RENAMED.get(name, name): what for name, what in row.items()} for row in rows]


def _read_json(path: Path) -> JsonValue:
    """What a file holds; an empty object where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
