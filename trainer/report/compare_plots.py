"""Plots that overlay several runs, each a line of its own colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.engine.log import Record, number, numbers
from trainer.report.flops_text import flops_unit
from trainer.report.plot_style import (
    SERIES,
    STYLE,
    Plot,
    percent_axis,
    running_mean,
    step_axis,
    thin,
)
from trainer.report.run_record import RunRecord

Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Run's name -> x and y, (N,) each."""


def draw(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    """Each plot that at least one run has data for."""
    largest = max((number(row, "flops") for run in runs for row in run.frontier), default=1.0)
    scale, unit = flops_unit(largest)
    frontiers = _lines(runs, _test_rows, lambda r: number(r, "flops") / scale, "test_accuracy")
    steps = _lines(runs, lambda run: _having(run, "step", "loss"), _step, "loss")
    errors = _lines(runs, lambda run: _having(run, "generator", "mean_error"), _step, "mean_error")
    last = {run.name: run.of_kind("groups")[-1] for run in runs if run.of_kind("groups")}
    with rc_context(STYLE):
        if frontiers:
            yield Plot(
                "frontier",
                "Accuracy against FLOPs",
                "Top-1 accuracy on test images of the subnet that answers each budget.",
                _figure(
                    frontiers, "o-", f"{unit}FLOPs (multiply-adds) of the subnet",
                    "top-1 accuracy", percent_axis,
                ),
            )  # fmt: skip
        if steps:
            smooth = {
                name: (x, running_mean(y, max(len(y) // 25, 1))) for name, (x, y) in steps.items()
            }
            yield Plot(
                "loss",
                "Training loss",
                "Running mean of the task loss of whichever subnet was drawn: it is lower where "
                "larger subnets are drawn.",
                _figure(smooth, "-", None, "task loss (nats)"),
            )
        if last:
            ends = {
                name: (
                    np.array(numbers(r, "groups")) / scale,
                    np.array(numbers(r, "probabilities")),
                )
                for name, r in last.items()
            }
            yield Plot(
                "probabilities",
                "Sampling probability per FLOPs group",
                "The distribution from which training draws budgets, at each run's last update. "
                "Runs without one are left out.",
                _figure(
                    ends, "s-", f"{unit}FLOPs of the group", "sampling probability", percent_axis
                ),
            )
        if errors:
            yield Plot(
                "generator",
                "Error of the generator",
                "How far the FLOPs of its plain argmax are off the budget, mean over 100 budgets "
                "across the range.",
                _figure(errors, "o-", None, "mean error (argmax)", percent_axis),
            )


def _lines(
    runs: Sequence[RunRecord],
    rows_of: Callable[[RunRecord], list[Record]],
    x_of: Callable[[Record], float],
    field: str,
) -> Lines:
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for run in runs:
        rows = rows_of(run)
        if rows:
            x, y = (
                np.array(v) for v in ([x_of(r) for r in rows], [number(r, field) for r in rows])
            )
            found[run.name] = x, y
    return found


def _test_rows(run: RunRecord) -> list[Record]:
    rows = [row for row in run.frontier if row.get("test_accuracy") is not None]
    return sorted(rows, key=lambda row: number(row, "flops"))


def _having(run: RunRecord, kind: str, field: str) -> list[Record]:
    return [record for record in run.of_kind(kind) if record.get(field) is not None]


def _step(record: Record) -> float:
    return number(record, "step")


def _figure(
    lines: Lines,
    style: str,
    x_label: str | None,
    y_label: str,
    dress: Callable[[Axes], None] | None = None,
) -> Figure:
    """x_label: None for training steps."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, (x, y)) in enumerate(lines.items()):
        kept = thin(len(x), 400)
        colour = SERIES[place % len(SERIES)]
        axes.plot(x[kept], y[kept], style, ms=3.5, lw=1.5, color=colour, label=name)
    if x_label is None:
        step_axis(axes)
    else:
        axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if dress is not None:
        dress(axes)
    axes.legend(fontsize=8)
    return figure
