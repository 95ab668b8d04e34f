"""python -m trainer.report.compare RUN RUN ...: runs over one another, from what they left on disk.

    python -m trainer.report.compare runs/shift runs/uniform                # a table, as Markdown
    python -m trainer.report.compare runs/shift runs/uniform --html all.html # one file, plots
    python -m trainer.report.compare runs/* --json

Runs must be of the same search space on the same images; what else differs between them is listed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.engine.disk import writing
from trainer.engine.log import JsonValue, Record, number
from trainer.report.display import format_duration
from trainer.report.html import facts, figure, page, table
from trainer.report.page import accuracy_cells, flat, status
from trainer.report.report import markdown_table, text_table
from trainer.report.run_record import RunRecord, read_run

HEAD = ("run", "sampler", "seed", "steps", "training", "mean test", "AG error", "state")
_WORDS = 2
"""Columns of the head that are words."""


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs, each with a name of its own.

    Raises ValueError for fewer than two, for what is no run, and for runs that cannot be compared.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} run given; name at least two folders of training runs")
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    runs = [
        run if names.count(run.name) == 1 else replace(run, name=str(path))
        for run, path in zip(runs, paths, strict=True)
    ]
    first = runs[0]
    for run in runs[1:]:
        for what, own, other in (
            ("space", first.space, run.space),
            ("data", _start(first, "data"), _start(run, "data")),
            ("images (train, held out, test)", _start(first, "images"), _start(run, "images")),
        ):
            if own != other:
                raise ValueError(
                    f"{first.name} and {run.name} cannot be compared: {what} {own} and {other}; "
                    "give runs of one space on the same images"
                )
    return runs


def summary(run: RunRecord) -> dict[str, JsonValue]:
    """A run in a few numbers; None for what it has not come to."""
    accuracies = [
        number(row, "test_accuracy") for row in run.frontier if row.get("test_accuracy") is not None
    ]
    reports = [*run.of_kind("generator"), *run.of_kind("answers")]
    return {
        "name": run.name,
        "sampler": run.sampler,
        "seed": run.recipe.get("seed"),
        "step": run.step,
        "training_s": run.seconds,
        "mean_test_accuracy": statistics.mean(accuracies) if accuracies else None,
        "generator_mean_error": reports[-1].get("mean_error") if reports else None,
        "state": status(run),
    }


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings in which the recipes differ, and what each run has."""
    each = [dict(flat(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for settings in each for key in settings)
    found = [(key, [settings.get(key, "–") for settings in each]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def compare_page(runs: Sequence[RunRecord]) -> str:
    """The whole document."""
    from trainer.report import compare_plots

    names = [run.name for run in runs]
    body = ["<h1>Runs compared</h1>"]
    body += [table(HEAD, _summary_cells(runs), words=_WORDS)]
    body += [figure(plot) for plot in compare_plots.draw(runs)]
    cells = accuracy_cells(runs)
    if cells:
        body += ["<h2>Test accuracy per budget</h2>", table(["budget", *names], cells)]
    rows = [[key, *values] for key, values in differences(runs)]
    if rows:
        body += ["<h2>What differs</h2>", table(["setting", *names], rows, words=len(names) + 1)]
    common = [("space", str(runs[0].space)), ("data", str(_start(runs[0], "data")))]
    commits = {str(_start(run, "commit")) for run in runs}
    common.append(("commits" if len(commits) > 1 else "commit", ", ".join(sorted(commits))))
    body += ["<h2>What does not</h2>", facts(common)]
    return page("Runs compared", body)


def write_page(runs: Sequence[RunRecord], file: Path) -> None:
    """The page, as one file. Raises ValueError where it cannot be written."""
    document = compare_page(runs)
    with writing(file, then=""):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(document, encoding="utf-8")


def write_pdf(runs: Sequence[RunRecord], file: Path) -> None:
    """Tables, then a page a plot. Raises ValueError where it cannot be written."""
    from trainer.report import compare_plots, pdf

    lines = text_table(HEAD, _summary_cells(runs))
    cells = accuracy_cells(runs)
    if cells:
        lines += ["", *text_table(["budget", *(run.name for run in runs)], cells)]
    drawn = list(compare_plots.draw(runs))
    with writing(file, then=""):
        file.parent.mkdir(parents=True, exist_ok=True)
        pdf.write(file, "Runs compared", lines, drawn)


def markdown(runs: Sequence[RunRecord]) -> str:
    """Both tables."""
    lines = markdown_table(HEAD, _summary_cells(runs))
    cells = accuracy_cells(runs)
    if cells:
        lines += ["", *markdown_table(["budget", *(run.name for run in runs)], cells)]
    return "\n".join(lines)


def _summary_cells(runs: Sequence[RunRecord]) -> list[list[str]]:
    def share(value: JsonValue) -> str:
        return f"{value:.2%}" if isinstance(value, int | float) else ""

    rows: list[list[str]] = []
    for run in runs:
        found = summary(run)
        seconds = run.seconds
        rows.append(
            [
                run.name,
                run.sampler or "",
                "" if found["seed"] is None else str(found["seed"]),
                f"{run.step:,}",
                "" if seconds is None else format_duration(seconds),
                share(found["mean_test_accuracy"]),
                share(found["generator_mean_error"]),
                status(run).partition(":")[0],
            ]
        )
    return rows


def _start(run: RunRecord, field: str) -> JsonValue:
    """What the first process of a run wrote when it started."""
    starts: list[Record] = run.of_kind("start")
    return starts[0].get(field) if starts else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Answers the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of training runs"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to FILE")
    parser.add_argument("--pdf", type=Path, metavar="FILE", help="write a PDF to FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.runs)
        if options.html is not None:
            write_page(runs, options.html)
        if options.pdf is not None:
            write_pdf(runs, options.pdf)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    if options.json:
        each = [{**summary(run), "frontier": run.frontier} for run in runs]
        print(json.dumps({"space": runs[0].space, "data": _start(runs[0], "data"), "runs": each}))
        return 0
    print(markdown(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
