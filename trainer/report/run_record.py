"""RunRecord: what a training run left on disk, read once for reports and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from models.spaces import SPACES, get_space
from trainer.engine.log import JsonValue, Record, number, numbers, read_log

LOG_NAME = "log.jsonl"
RECIPE_NAME = "recipe.json"
FRONTIER_NAME = "frontier.json"
_FRONTIER_PLACES = (FRONTIER_NAME, f"bundle/{FRONTIER_NAME}")


@dataclass(frozen=True)
class RunRecord:
    """Log records, and frontier rows (none before the run's end).

    recipe: of the last process of the run; empty if the run has no recipe.json.
    """

    name: str
    recipe: Record
    records: list[Record]
    frontier: list[Record]

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind, in the order they were written."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def space(self) -> str | None:
        """Name of the search space."""
        return self._word("space")

    @property
    def sampler(self) -> str | None:
        """Name of the sampler."""
        return self._word("sampler")

    @cached_property
    def step(self) -> int:
        """The last step that the log knows of."""
        steps = [record["step"] for record in self.records if isinstance(record.get("step"), int)]
        return max((int(str(step)) for step in steps), default=0)

    @cached_property
    def total_steps(self) -> int | None:
        """Steps of the whole schedule, as the last process had it."""
        totals = [record.get("total_steps") for record in self.of_kind("start")]
        return totals[-1] if totals and isinstance(totals[-1], int) else None

    @cached_property
    def frontier_step(self) -> int | None:
        """The step whose weights the frontier measured; None if the log does not say."""
        answers = self.of_kind("answers")
        return int(number(answers[-1], "step")) if answers else None

    @cached_property
    def seconds(self) -> float | None:
        """From the first step to the last logged one, evaluations included; resumes are not."""
        steps = self.of_kind("step")
        has_time = steps and steps[-1].get("elapsed_s") is not None
        return number(steps[-1], "elapsed_s") if has_time else None

    @cached_property
    def groups(self) -> list[float]:
        """Upper ends of the FLOPs groups, ascending; empty if nothing tells them."""
        for kind in ("groups", "start"):
            for record in reversed(self.of_kind(kind)):
                if record.get("groups"):
                    return numbers(record, "groups")
        options = self.recipe.get("sampler_options")
        count = options.get("groups") if isinstance(options, Mapping) else None
        if self.space not in SPACES or not isinstance(count, int):
            return []
        assert self.space is not None
        space = get_space(self.space)
        low, high = space.min_flops, space.max_flops
        return [float(round(low + (high - low) * (k + 1) / count)) for k in range(count)]

    def drawn(self) -> list[tuple[float, float, float | None]]:
        """(step, FLOPs, task loss or None) of every trained subnet that the log has.

        Logs without `drawn_flops` have the last subnet of every logged step.
        """
        points: list[tuple[float, float, float | None]] = []
        for record in self.of_kind("step"):
            step = number(record, "step")
            if record.get("drawn_flops"):
                flops, losses = record["drawn_flops"], record.get("drawn_losses")
                assert isinstance(flops, Sequence)
                assert isinstance(losses, Sequence)
                points += [
                    (step, float(str(f)), None if loss is None else float(str(loss)))
                    for f, loss in zip(flops, losses, strict=True)
                ]
            elif record.get("flops") is not None:
                loss = record.get("loss")
                is_number = isinstance(loss, int | float)
                points.append((step, number(record, "flops"), float(loss) if is_number else None))
        return points

    @property
    def has_every_draw(self) -> bool:
        """Whether `drawn` has every trained subnet, or one of every logged step."""
        return any(record.get("drawn_flops") for record in self.of_kind("step"))

    def group_of(self, flops: float) -> int:
        """The group that a subnet of so many FLOPs belongs to."""
        return next((k for k, upper in enumerate(self.groups) if flops <= upper), -1)

    def group_answers(self) -> list[Record]:
        """What is served at the upper end of each group: rows with budget_flops, flops, arch.

        From the answers at the end of the run; before it, from the last evaluation at its budgets.
        """
        answers = self.of_kind("answers")
        if answers and self.groups:
            rows = [row for row in rows_of(answers[-1]) if row.get("served")]
            rows.sort(key=lambda row: number(row, "flops"))
            chosen = []
            for upper in self.groups:
                within = [row for row in rows if number(row, "flops") <= upper]
                if within:
                    chosen.append({**within[-1], "budget_flops": upper})
            return chosen
        if self.frontier:
            return [row for row in self.frontier if row.get("arch") is not None]
        evaluations = self.of_kind("evaluation")
        rows = rows_of(evaluations[-1]) if evaluations else []
        return [row for row in rows if row.get("arch") is not None]

    def _word(self, field: str) -> str | None:
        value = self.recipe.get(field)
        return value if isinstance(value, str) else None


def rows_of(record: Record) -> list[Record]:
    """The field `rows` of a record. Raises ValueError if it is no list of objects."""
    rows = _objects(record.get("rows"))
    if rows is None:
        raise ValueError(f"rows of a record of kind {record['kind']} must be a list of objects")
    return rows


def _objects(value: JsonValue) -> list[Record] | None:
    """A list of objects, or None for anything else."""
    if not isinstance(value, list):
        return None
    rows = [entry for entry in value if isinstance(entry, dict)]
    return rows if len(rows) == len(value) else None


def read_run(run: Path) -> RunRecord:
    """Raises ValueError, in one line, if the folder or the log is missing or not readable."""
    if not run.is_dir():
        raise ValueError(f"{run} is no folder: give the output folder of a training run")
    frontier: list[Record] = []
    for place in _FRONTIER_PLACES:
        if (run / place).is_file():
            frontier = _read_frontier(run / place)
            break
    recipe: JsonValue = {}
    if (run / RECIPE_NAME).is_file():
        recipe = _read_json(run / RECIPE_NAME)
        if not isinstance(recipe, dict):
            raise ValueError(f"{run / RECIPE_NAME} must be an object, as a run writes it")
    assert isinstance(recipe, dict)
    return RunRecord(run.resolve().name, recipe, read_log(run / LOG_NAME), frontier)


def _read_frontier(path: Path) -> list[Record]:
    rows = _objects(_read_json(path))
    if rows is None:
        raise ValueError(f"{path} must be a list of rows")
    for row in rows:
        number(row, "budget_flops")
        number(row, "flops")
    return sorted(rows, key=lambda row: number(row, "budget_flops"))


def _read_json(path: Path) -> JsonValue:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
