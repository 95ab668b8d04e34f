"""What a report says of runs in words and tables; ``page.html`` is its form."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from models.interval import Z, interval
from trainer.engine.log import JsonValue, Record, number
from trainer.report.html import encoded, page
from trainer.report.plots import Plot
from trainer.report.run_record import RunRecord, rows_of
from trainer.report.words import format_duration, format_flops, markdown_table

FRONTIER = ("budget", "FLOPs", "of budget", "parameters", "held-out accuracy", "test accuracy")
SUMMARY = ("run", "sampler", "seed", "steps", "training", "mean test accuracy", "AG error", "state")
SPLITS = (
    "Held-out: training images on which no weight was trained; they move the distribution B and "
    "decide what is served. Test: reported, decides nothing; in a data set without a test split "
    "these are its val images, or a fifth of all."
)
_NOT_PROVENANCE = ("kind", "step", "total_steps", "recipe")

Table = tuple[str, Sequence[str], list[list[str]]]
"""Heading, names of the columns, rows."""


def report_page(runs: Sequence[RunRecord], plots: Sequence[Plot]) -> str:
    """The whole document."""
    first = runs[0]
    facts = [("What differs", differences(runs))]
    if not runs[1:]:
        facts += [("Changed when the run was resumed", changes_at_resume(first))]
    facts += [("Recipe", flat(first.recipe)), ("Where it comes from", _provenance(first))]
    return page(
        "page.html",
        title="Runs compared" if runs[1:] else first.name,
        status="" if runs[1:] else status(first),
        tables=tables(runs),
        splits=SPLITS,
        plots=[(plot, encoded(plot.figure)) for plot in plots],
        remarks=remarks(runs),
        facts=facts,
    )


def report_text(runs: Sequence[RunRecord], plots: Sequence[Plot]) -> str:
    """The tables and the plots, by file name, as Markdown."""
    lines = [f"# {'Runs compared' if runs[1:] else runs[0].name}", ""]
    if not runs[1:]:
        lines += [status(runs[0]), ""]
    for heading, head, rows in tables(runs):
        if rows:
            lines += [f"## {heading}", "", *markdown_table(head, rows), ""]
    lines += [SPLITS, ""]
    for plot in plots:
        lines += [f"## {plot.title}", "", f"![{plot.title}]({plot.name}.png)", ""]
    return "\n".join(lines)


def tables(runs: Sequence[RunRecord]) -> list[Table]:
    """Runs in a few figures, and their accuracy per budget: of several side by side."""
    rows = [
        [run.name, *(_text(value) for value in list(summary(run).values())[1:])] for run in runs
    ]
    if runs[1:]:
        head = ["budget", *(run.name for run in runs)]
        accuracy: Table = ("Test accuracy per budget", head, _accuracy_cells(runs))
    else:
        accuracy = ("Accuracy per budget", FRONTIER, frontier_cells(runs[0]))
    return [("Runs" if runs[1:] else "The run", SUMMARY, rows), accuracy]


def summary(run: RunRecord) -> dict[str, str | None]:
    """A run in a few figures, in the order of ``SUMMARY``; None for what it has not come to."""
    accuracies = [
        number(row, "test_accuracy") for row in run.frontier if row.get("test_accuracy") is not None
    ]
    reports = [*run.of_kind("generator"), *run.of_kind("answers")]
    return {
        "name": run.name,
        "sampler": run.setting("sampler"),
        "seed": run.setting("seed"),
        "steps": f"{run.step:,}",
        "training": None if run.seconds is None else format_duration(run.seconds),
        "mean_test_accuracy": f"{statistics.mean(accuracies):.2%}" if accuracies else None,
        "generator_mean_error": f"{number(reports[-1], 'mean_error'):.2%}" if reports else None,
        "state": status(run).partition(":")[0],
    }


def status(run: RunRecord) -> str:
    """How far the run is, in words."""
    words = f"step {run.step:,}" + (f" of {run.total_steps:,}" if run.total_steps else "")
    answers = run.of_kind("answers")
    if run.frontier and answers and run.step > number(answers[-1], "step"):
        words = f"Goes on: {words}; the table is of step {int(number(answers[-1], 'step')):,}"
    else:
        words = f"Finished: {words}" if run.frontier else f"Not finished: {words}"
    resumes = len(run.of_kind("start")) - 1
    return f"{words}; resumed {resumes} times." if resumes > 0 else f"{words}."


def frontier_cells(run: RunRecord) -> list[list[str]]:
    """A row per budget, as text. One multiply-add is one FLOP."""
    return [
        [
            format_flops(number(row, "budget_flops")),
            format_flops(number(row, "flops")),
            f"{number(row, 'flops') / number(row, 'budget_flops'):.1%}",
            f"{int(number(row, 'params')):,}" if "params" in row else "",
            _accuracy(run, row, "held_out_accuracy"),
            _accuracy(run, row, "test_accuracy"),
        ]
        for row in run.frontier
    ]


def _accuracy_cells(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Test accuracy: a row per budget of the first run, a column per run, as text."""
    rows: list[list[str]] = []
    for row in runs[0].frontier:
        budget = number(row, "budget_flops")
        cells = [format_flops(budget)]
        for run in runs:
            within = [r for r in run.frontier if number(r, "budget_flops") <= budget * (1 + 1e-9)]
            cells.append(_accuracy(run, within[-1], "test_accuracy") if within else "none so small")
        rows.append(cells)
    return rows


def differences(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Settings in which the recipes differ, and what each run has."""
    each = [dict(flat(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for settings in each for key in settings)
    rows = [[key, *(settings.get(key, "–") for settings in each)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def remarks(runs: Sequence[RunRecord]) -> list[str]:
    """What did not work out, and what the report lacks."""
    if runs[1:]:
        return [f"{run.name} has no frontier yet." for run in runs if not run.frontier]
    run = runs[0]
    lines: list[str] = []
    answers = run.of_kind("answers")
    if answers:
        rows = rows_of(answers[-1])
        dropped = [format_flops(number(row, "flops")) for row in rows if not row.get("served")]
        if dropped:
            sizes = ", ".join(dropped[:8]) + (", ..." if dropped[8:] else "")
            lines.append(
                f"{len(dropped)} of {len(rows)} archs that the generator answers are not served: a "
                f"smaller one is clearly better on held-out images ({sizes} FLOPs)."
            )
    for row in run.frontier:
        budget = format_flops(number(row, "budget_flops"))
        if number(row, "flops") < 0.9 * number(row, "budget_flops"):
            lines.append(f"More than a tenth of the budget is left unused at {budget}.")
    for small, large in pairwise(row for row in run.frontier if row.get("test_accuracy")):
        accuracies = number(small, "test_accuracy"), number(large, "test_accuracy")
        lost, images = accuracies[0] - accuracies[1], run.images("test_accuracy")
        error = sum(a * (1 - a) / images for a in accuracies) ** 0.5 if images else 0.0
        if lost > max(0.005, Z * error):
            lines.append(
                f"The subnet at {format_flops(number(large, 'budget_flops'))} is "
                f"{100 * lost:.1f} points worse on test images than the one at "
                f"{format_flops(number(small, 'budget_flops'))}."
            )
    if not run.frontier:
        lines.append("No frontier and no test accuracy yet: they are measured when the run ends.")
    if not run.of_kind("groups"):
        lines.append(
            "No probabilities over time: the sampler does not move them, or no update came yet."
        )
    lines.append(
        "One run, one seed: nothing here says that the sampler helps, and differences of a few "
        "standard errors mean nothing. Name other runs too."
    )
    return lines


def changes_at_resume(run: RunRecord) -> list[list[str]]:
    """Settings that a later process had otherwise than the one before."""
    rows: list[list[str]] = []
    for before, after in pairwise(run.of_kind("start")):
        old, new = (
            dict(flat(recipe if isinstance(recipe := start.get("recipe"), Mapping) else {}))
            for start in (before, after)
        )
        rows += [
            [f"from step {int(number(after, 'step')):,}", key, f"{old.get(key)} → {new.get(key)}"]
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    return rows


def flat(settings: Mapping[str, JsonValue], prefix: str = "") -> list[list[str]]:
    """Settings by dotted name, as text."""
    rows: list[list[str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append([prefix + key, _text(value)])
    return rows


def _provenance(run: RunRecord) -> list[list[str]]:
    """What the last process wrote when it started."""
    starts, answers = run.of_kind("start"), run.of_kind("answers")
    start = starts[-1] if starts else {}
    rows = [[k.replace("_", " "), _text(v)] for k, v in start.items() if k not in _NOT_PROVENANCE]
    return rows + [["weights", _text(record.get("weights"))] for record in answers[-1:]]


def _text(value: JsonValue) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _accuracy(run: RunRecord, row: Record, field: str) -> str:
    """With its 95 % interval, if the log says on how many images it was measured."""
    if row.get(field) is None:
        return ""
    value, images = number(row, field), run.images(field)
    if not images:
        return f"{value:.2%}"
    low, high = interval(value, images)
    return f"{value:.2%} [{100 * low:.1f}, {100 * high:.1f}]"
