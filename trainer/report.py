"""python -m trainer.report RUN: a run's table and plots, from what it left on disk.

Reads log.jsonl, recipe.json (for the search space's name) and frontier.json (the bundle's rows, if
the run has got so far); writes RUN/report/report.md and a PNG and an SVG per plot.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.flops_text import format_flops
from trainer.log import Record, number, read_log

LOG_NAME = "log.jsonl"
RECIPE_NAME = "recipe.json"
FRONTIER_NAME = "frontier.json"
_FRONTIER_PLACES = (FRONTIER_NAME, f"bundle/{FRONTIER_NAME}")


@dataclass(frozen=True)
class RunRecord:
    """What a run left on disk: log records, and frontier rows (none before its end).

    space: name of the search space, None if the run has no recipe.json.
    """

    name: str
    space: str | None
    records: list[Record]
    frontier: list[Record]

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind, in the order they were written."""
        return [record for record in self.records if record["kind"] == kind]


def read_run(run: Path) -> RunRecord:
    """Raises ValueError, in one line, if the folder or the log is missing or not readable."""
    if not run.is_dir():
        raise ValueError(f"{run} is no folder: give the output folder of a training run")
    frontier: list[Record] = []
    for place in _FRONTIER_PLACES:
        if (run / place).is_file():
            frontier = _read_frontier(run / place)
            break
    space = None
    if (run / RECIPE_NAME).is_file():
        recipe = _read_json(run / RECIPE_NAME)
        space = recipe.get("space") if isinstance(recipe, dict) else None
    name = space if isinstance(space, str) else None
    return RunRecord(run.resolve().name, name, read_log(run / LOG_NAME), frontier)


def write_report(run: Path, out: Path | None = None) -> list[Path]:
    """Write report.md and the plots that the run has data for into `out` (RUN/report).

    Answers the files written, report.md first. Raises ValueError as read_run does.
    """
    from trainer import plots

    record = read_run(run)
    folder = out if out is not None else run / "report"
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[str, str]] = []
    files: list[Path] = []
    for name, title, figure in plots.draw(record.of_kind, record.frontier, record.space):
        drawn.append((name, title))
        files += plots.save(figure, folder / name)
    text = report_text(record, drawn)
    document = folder / "report.md"
    document.write_text(text, encoding="utf-8")
    return [document, *files]


def report_text(record: RunRecord, plots: Sequence[tuple[str, str]]) -> str:
    """The report as Markdown: the table of accuracy per budget, then the plots by file name."""
    lines = [f"# {record.name}", ""]
    if record.frontier:
        lines += ["## Accuracy per budget", "", *frontier_table(record.frontier), ""]
    else:
        lines += ["The run has no frontier yet: it has not come to its end.", ""]
    for name, title in plots:
        lines += [f"## {title}", "", f"![{title}]({name}.png)", ""]
    return "\n".join(lines)


def frontier_table(frontier: Sequence[Record]) -> list[str]:
    """Markdown lines, one row per budget. One multiply-add is one FLOP."""
    head = ("budget", "FLOPs", "of budget", "parameters", "val accuracy", "test accuracy")
    lines = ["| " + " | ".join(head) + " |", "|" + " --: |" * len(head)]
    for row in sorted(frontier, key=lambda row: number(row, "budget_flops")):
        budget, flops = number(row, "budget_flops"), number(row, "flops")
        cells = (
            format_flops(budget),
            format_flops(flops),
            f"{flops / budget:.1%}",
            f"{int(number(row, 'params')):,}" if row.get("params") is not None else "",
            _accuracy(row, "val_accuracy"),
            _accuracy(row, "test_accuracy"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _accuracy(row: Record, field: str) -> str:
    return "" if row.get(field) is None else f"{number(row, field):.2%}"


def _read_frontier(path: Path) -> list[Record]:
    rows = _read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must be a list of rows")
    for row in rows:
        number(row, "budget_flops")
        number(row, "flops")
    return rows


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Answers the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report",
        description="Write a table of accuracy per budget and plots for a training run.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a training run")
    parser.add_argument("--out", type=Path, help="where to write (default: RUN/report)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        files = write_report(options.run, options.out)
        record = read_run(options.run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"files": [str(f) for f in files], "frontier": record.frontier}))
        return 0
    if record.frontier:
        print("\n".join(frontier_table(record.frontier)))
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
