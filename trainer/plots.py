"""The plots of a run, each a function from log records or frontier rows to one figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from trainer.arch_plot import arch_figure
from trainer.flops_text import flops_unit
from trainer.log import Record, number, numbers

STYLE: dict[str, object] = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "shiftnas",
}

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9772b", "#9a9a9a"
# Reads in grey and with colour blindness; without its palest end, which white swallows.
_COLOURS = LinearSegmentedColormap.from_list("groups", colormaps["viridis"](np.linspace(0, 0.92)))
_MAX_POINTS = 1500  # per line: more only make the SVG large
_MAX_SVG_BYTES = 300_000


def draw(
    of_kind: Callable[[str], list[Record]], frontier: Sequence[Record], space: str | None
) -> Iterator[tuple[str, str, Figure]]:
    """File name, title and figure of each plot that there is data for.

    of_kind: the log records of a kind. frontier: rows with budget_flops, flops, val_accuracy,
    test_accuracy (may be absent) and arch. space: name of the search space, None if unknown.
    Raises ValueError for a record that lacks a field.
    """
    steps, groups = of_kind("step"), of_kind("groups")
    generator, evaluations = of_kind("generator"), of_kind("evaluation")
    with rc_context(STYLE):
        if frontier:
            yield "frontier", "Accuracy against FLOPs", frontier_figure(frontier)
        if groups:
            yield "probabilities", "Sampling probability per FLOPs group", groups_figure(groups)
        rows = [row for row in frontier if row.get("arch") is not None]
        if rows:
            yield "archs", "Chosen archs", arch_figure(rows, space)
        if generator:
            yield (
                "generator",
                "How well the generator keeps to budgets",
                generator_figure(generator),
            )
        if evaluations:
            yield "evaluations", "Accuracy during training", evaluations_figure(evaluations)
        if steps:
            yield "loss", "Training loss", loss_figure(steps)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write path.png, and path.svg where that is small; answers what was written."""
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    with rc_context(STYLE):
        figure.savefig(png, metadata={"Software": None})
        text = io.BytesIO()
        # Without a date the same data gives the same file.
        figure.savefig(text, format="svg", metadata={"Date": None})
    if text.tell() > _MAX_SVG_BYTES:
        svg.unlink(missing_ok=True)  # one of an earlier report would contradict the PNG
        return [png]
    svg.write_bytes(text.getvalue())
    return [png, svg]


def frontier_figure(frontier: Sequence[Record]) -> Figure:
    """Accuracy of the subnet that answers each budget, on test and steer images."""
    rows = sorted(frontier, key=lambda row: number(row, "flops"))
    scale, unit = flops_unit(number(rows[-1], "flops"))
    flops = [number(row, "flops") / scale for row in rows]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for field, label, colour, style in (
        ("val_accuracy", "held-out training images", _GREY, "o--"),
        ("test_accuracy", "test images", _BLUE, "o-"),
    ):
        if all(row.get(field) is not None for row in rows):
            accuracy = [number(row, field) for row in rows]
            face = colour if field == "test_accuracy" else "white"
            axes.plot(
                flops, accuracy, style, color=colour, markerfacecolor=face, lw=1.6, ms=5,
                label=label,
            )  # fmt: skip
            if field == "test_accuracy":
                for place in {0, len(rows) - 1}:
                    axes.annotate(
                        f"{accuracy[place]:.1%}", (flops[place], accuracy[place]),
                        textcoords="offset points", xytext=(0, -14), ha="center", color=colour,
                    )  # fmt: skip
    axes.margins(x=0.06, y=0.14)
    axes.set_xlabel(f"{unit}FLOPs (multiply-adds) of the subnet")
    axes.set_ylabel("top-1 accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    if axes.lines:
        axes.legend(loc="lower right")
    return figure


def groups_figure(records: Sequence[Record]) -> Figure:
    """Sampling probability of every FLOPs group over time, and where it ended."""
    flops = np.array(numbers(records[-1], "groups"))
    steps = np.array([number(record, "step") for record in records])
    shares = np.array([numbers(record, "probabilities") for record in records])
    scale, unit = flops_unit(flops.max())
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    over_time, at_end = figure.subplots(1, 2, width_ratios=(1.35, 1))
    colours, scale_of = _shades(flops / scale)
    kept = _thin(len(steps))
    for group in range(len(flops)):
        over_time.plot(
            steps[kept], shares[kept, group], color=colours[group], lw=1.4,
            drawstyle="steps-post",
        )  # fmt: skip
    _step_axis(over_time)
    over_time.set_ylabel("sampling probability")
    _colour_bar(figure, scale_of, over_time, f"{unit}FLOPs of the group")
    width = 0.8 * (np.diff(flops).min() / scale if len(flops) > 1 else 1.0)
    at_end.bar(flops / scale, shares[-1], width, color=colours)
    at_end.axhline(1 / len(flops), color="#222222", lw=1, ls="--")
    at_end.annotate(
        "uniform", (1, 1 / len(flops)), xycoords=("axes fraction", "data"), ha="right",
        xytext=(0, 4), textcoords="offset points", fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip
    at_end.set_xlabel(f"{unit}FLOPs of the group")
    at_end.set_ylabel(f"probability at step {int(steps[-1]):,}")
    at_end.grid(visible=False, axis="x")
    for axes in (over_time, at_end):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    return figure


def generator_figure(records: Sequence[Record]) -> Figure:
    """Mean error and mean use of the budget, and the entropy of the policy, over time."""
    has_entropy = records[-1].get("entropy") is not None
    figure = Figure(figsize=(9.6 if has_entropy else 7.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 3 if has_entropy else 2)
    steps = np.array([number(record, "step") for record in records])
    kept = _thin(len(steps))
    for axes, field, label in (
        (panels[0], "mean_error", "mean error of the FLOPs (argmax)"),
        (panels[1], "mean_use", "mean use of the budget (decoded)"),
    ):
        values = np.array([number(record, field) for record in records])
        axes.plot(steps[kept], values[kept], color=_BLUE, lw=1.6)
        axes.annotate(
            f"{values[-1]:.1%}", (steps[-1], values[-1]), textcoords="offset points",
            xytext=(0, 6), ha="right", color=_BLUE,
        )  # fmt: skip
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    panels[0].set_ylim(bottom=0)
    # Not zoomed in on: use is within a percent of the same value for most of a run.
    panels[1].set_ylim(min(0.9, panels[1].get_ylim()[0]), 1)
    if has_entropy:
        entropy = np.array([numbers(record, "entropy") for record in records])
        colours, scale_of = _shades(np.arange(1, entropy.shape[1] + 1))
        for group in range(entropy.shape[1]):
            panels[2].plot(steps[kept], entropy[kept, group], color=colours[group], lw=1.2)
        panels[2].set_ylabel("entropy of the policy (nats)")
        _colour_bar(figure, scale_of, panels[2], "FLOPs group, smallest first")
        panels[2].set_ylim(bottom=0)
    for axes in panels:
        _step_axis(axes)
    return figure


def evaluations_figure(records: Sequence[Record]) -> Figure:
    """Accuracy on held-out training images at fixed budgets over time."""
    lines: dict[float, list[tuple[float, float]]] = {}
    for record in records:
        rows = record.get("rows")
        assert isinstance(rows, Sequence)
        for row in rows:
            assert isinstance(row, dict)
            point = (number(record, "step"), number(row, "val_accuracy"))
            lines.setdefault(number(row, "budget_flops"), []).append(point)
    budgets = sorted(lines)
    scale, unit = flops_unit(budgets[-1])
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours, scale_of = _shades(np.array(budgets) / scale)
    for budget, colour in zip(budgets, colours, strict=True):
        steps, accuracy = zip(*lines[budget], strict=True)
        axes.plot(steps, accuracy, "o-", ms=3, lw=1.4, color=colour)
    _colour_bar(figure, scale_of, axes, f"budget ({unit}FLOPs)")
    _step_axis(axes)
    axes.set_ylabel("accuracy on held-out training images")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    return figure


def loss_figure(records: Sequence[Record]) -> Figure:
    """Task loss of every logged step with its running mean; L_RC below if it was logged."""
    has_resource = any(record.get("resource_loss") is not None for record in records)
    figure = Figure(figsize=(6.4, 4.6 if has_resource else 3.4), layout="constrained")
    panels = figure.subplots(2 if has_resource else 1, 1, sharex=True, squeeze=False)[:, 0]
    _noisy_line(panels[0], records, "loss", _BLUE)
    panels[0].set_ylabel("task loss")
    if has_resource:
        _noisy_line(panels[1], records, "resource_loss", _ORANGE)
        panels[1].set_ylabel("resource loss $L_{RC}$")
        panels[1].set_yscale("log", nonpositive="mask")
    _step_axis(panels[-1])
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it, at most `window` of them: (N,) float64."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def _noisy_line(axes: Axes, records: Sequence[Record], field: str, colour: str) -> None:
    points = [
        (number(record, "step"), number(record, field))
        for record in records
        if record.get(field) is not None
    ]
    if not points:
        return
    steps, values = np.array(points).T
    smooth = running_mean(values, max(len(values) // 50, 1))
    kept = _thin(len(steps))
    axes.plot(steps[kept], values[kept], color=colour, lw=0.7, alpha=0.3)
    axes.plot(steps[kept], smooth[kept], color=colour, lw=1.8)


def _thin(count: int) -> np.ndarray:
    """At most _MAX_POINTS places of `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _MAX_POINTS)).astype(np.int64))


def _shades(values: np.ndarray) -> tuple[np.ndarray, ScalarMappable]:
    """A colour per value, (N, 4), and what a colour bar needs to show the scale."""
    low, high = float(values.min()), float(values.max())
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), _COLOURS)
    return np.asarray(scale.to_rgba(values)), scale


def _colour_bar(figure: Figure, scale: ScalarMappable, axes: Axes, label: str) -> None:
    figure.colorbar(scale, ax=axes, label=label, pad=0.02).outline.set_visible(False)


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("training step")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.locator_params(axis="x", nbins=4)
