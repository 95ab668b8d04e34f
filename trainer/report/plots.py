"""The plots of a report, each a function from what runs logged to one figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from models.interval import interval
from models.space.search_space import SearchSpace
from models.spaces import SPACES, get_space
from trainer.engine.log import Record, number, numbers
from trainer.pairs import SHOWN_AT, Curve
from trainer.report.run_record import RunRecord, rows_of
from trainer.report.subnet_plot import subnets_figure
from trainer.report.words import flops_unit, format_flops

STYLE = Path(__file__).with_name("report.mplstyle")
BLUE, GREY, INK = "#2f74c0", "#8c8c8e", "#222223"
# Groups have an order. Hue moves one way; every colour stands out from white.
ORDERED = LinearSegmentedColormap.from_list(
    "groups", ["#23998c", "#2f74c0", "#8d62c9", "#cf4d8f", "#dd7f2e"]
)
UNIFORM_ARCHS = 4000
"""Random archs, to show what a run's subnets are compared with."""
BINS = 40

Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Plot:
    """A figure. name: of its file. caption: what it shows, also for screen readers."""

    name: str
    title: str
    caption: str
    figure: Figure


def plotted(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    """Each plot that there is data for: of one run, or what can be laid over one another.

    Raises ValueError for a record that lacks a field.
    """
    with matplotlib.style.context(STYLE):
        if any(run.frontier for run in runs):
            yield Plot(
                "frontier",
                "Accuracy against FLOPs",
                "Top-1 accuracy of the subnet that answers each budget, on test images, with 95 % "
                "intervals"
                + ("." if runs[1:] else " and on the training images held out for decisions."),
                frontier_figure(runs),
            )
        yield from _of_several(runs) if runs[1:] else _of_one(runs[0])


def _of_several(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    losses = {run.name: _points(run.of_kind("step"), "loss") for run in runs}
    if any(len(x) for x, _ in losses.values()):
        smooth = {name: (x, running_mean(y, len(y) // 25)) for name, (x, y) in losses.items()}
        yield Plot(
            "loss",
            "Training loss",
            "Running mean of the task loss of whichever subnet was drawn: it is lower where larger "
            "subnets are drawn.",
            _lines_figure(smooth, "training step", "task loss (nats)"),
        )
    last = {
        run.name: np.array([numbers(moved[-1], "groups"), numbers(moved[-1], "probabilities")])
        for run in runs
        if (moved := _distributions(run))
    }
    if last:
        scale, unit = flops_unit(max(flops for x, _ in last.values() for flops in x))
        yield Plot(
            "probabilities",
            "Sampling probability per FLOPs group",
            "The distribution from which training draws budgets, at each run's last update. Runs "
            "without one are left out.",
            _lines_figure(
                {name: (x / scale, y) for name, (x, y) in last.items()},
                f"{unit}FLOPs of the group",
                "sampling probability",
                percent=True,
            ),
        )


def _of_one(run: RunRecord) -> Iterator[Plot]:
    steps, generator, evaluations = (
        run.of_kind(kind) for kind in ("step", "generator", "evaluation")
    )
    groups = _distributions(run)
    space, trained, answers = _space_of(run), run.trained(), run.group_answers()
    curves = [
        Curve.from_json(row) for one in run.of_kind("confidence")[-1:] for row in rows_of(one)
    ]
    if run.frontier and curves:
        yield Plot(
            "confidence",
            "With a confidence",
            "A small subnet answers, and a larger one where it is less sure than was asked for: "
            "accuracy on test images by what is spent on average, at confidences of "
            f"{', '.join(f'{wish:.0%}' for wish in SHOWN_AT)}, with 95 % intervals.",
            confidence_figure(run, curves),
        )
    if groups:
        last = numbers(groups[-1], "probabilities")
        top = int(np.argmax(last))
        yield Plot(
            "probabilities",
            "Sampling probability per FLOPs group",
            "The distribution from which training draws budgets, over time and where it ended (the "
            f"paper's Fig. 5). Most likely at the end: the group up to "
            f"{format_flops(run.groups[top])} FLOPs, {last[top]:.1%} (uniform: "
            f"{1 / len(last):.1%}).",
            groups_figure(groups),
        )
    if trained:
        yield Plot(
            "histogram",
            "FLOPs of the subnets that were trained",
            "The trained subnets that the log tells of, against archs drawn uniformly over every "
            "decision's choices, which pile up in the middle of the range (the paper's Fig. 2).",
            histogram_figure(trained, space, run.groups),
        )
    if answers and space is not None:
        archs = [(row, space.arch_from_json(_mapping(row["arch"]))) for row in answers]
        yield Plot(
            "subnets",
            "What the generator answers",
            "The subnet at each FLOPs group's upper end, or at evaluated budgets, layer by layer "
            "from the image (top) to the classes (the paper's Fig. 10). A bar is as wide as the "
            "block's inner width, its dark part as wide as what the block passes on; where a block "
            "is missing, it was dropped.",
            subnets_figure(archs, space),
        )
    if generator:
        yield Plot(
            "generator",
            "How well the generator keeps to budgets",
            "Over 100 budgets across the range: how far the plain argmax is off, how much of the "
            "budget the answers use (they never exceed it), and the entropy of the policy "
            f"per group. At the end: error {number(generator[-1], 'mean_error'):.1%}, use "
            f"{number(generator[-1], 'mean_use'):.1%}.",
            generator_figure(generator),
        )
    if evaluations:
        yield Plot(
            "evaluations",
            "Accuracy during training",
            "Accuracy of what is served at fixed budgets, on the held-out training images.",
            evaluations_figure(evaluations),
        )
    if steps:
        yield Plot(
            "loss",
            "Training loss",
            "Task loss and resource loss of the logged steps, and their running means. The task "
            "loss is that of whichever subnet was drawn, so it is noisy by nature.",
            loss_figure(steps),
        )


def _distributions(run: RunRecord) -> list[Record]:
    """The updates that tell a distribution over groups: not all samplers that learn have one."""
    return [one for one in run.of_kind("groups") if numbers(one, "probabilities")]


def _space_of(run: RunRecord) -> SearchSpace | None:
    """None for a space that this version does not know."""
    if run.setting("space") not in SPACES:
        return None
    classes = run.start("classes")
    return get_space(run.setting("space"), int(str(classes)) if classes else None)


# ---------------------------------------------------------------------------------- the figures


def frontier_figure(runs: Sequence[RunRecord]) -> Figure:
    """Accuracy of the subnet that answers each budget: of one run also on held-out images."""
    scale, unit = flops_unit(max(number(row, "flops") for run in runs for row in run.frontier))
    fields = {"test_accuracy": ("test images", "o-")}
    if not runs[1:]:
        fields |= {"held_out_accuracy": ("held-out training images", "o--")}
    figure, axes = _one_axes(f"{unit}FLOPs (multiply-adds) of the subnet", "top-1 accuracy")
    for run in runs:
        for field, (words, style) in fields.items():
            x, y = _points(run.frontier, field, "flops")
            if len(x):
                label = run.name if runs[1:] else words
                (line,) = axes.plot(x / scale, y, style, label=label, ms=4)
                if images := run.images(field):
                    low, high = zip(*(interval(value, images) for value in y), strict=True)
                    colour = line.get_color()
                    axes.fill_between(x / scale, low, high, color=colour, alpha=0.15, lw=0)
    percent_axis(axes)
    axes.legend(loc="lower right")
    return figure


def plot_curves(axes: Axes, curves: Sequence[Curve], scale: float, of: float) -> None:
    """What pairs of subnets do at each confidence, by the FLOPs that they spend on average."""
    for pair in curves:
        spent = [point.spent_flops / scale for point in pair.points]
        right = of * np.array([point.accuracy for point in pair.points])
        ends = of * np.array([point.accuracy_95 for point in pair.points]).T
        first, second = (format_flops(flops) for flops in (pair.first_flops, pair.second_flops))
        (line,) = axes.plot(spent, right, "s-", ms=4, label=f"{first} first, {second} where unsure")
        axes.fill_between(spent, ends[0], ends[1], color=line.get_color(), alpha=0.15, lw=0)


def confidence_figure(run: RunRecord, curves: Sequence[Curve]) -> Figure:
    """The frontier on test images, and pairs beside it."""
    scale, unit = flops_unit(max(number(row, "flops") for row in run.frontier))
    figure, axes = _one_axes(
        f"{unit}FLOPs (multiply-adds), on average", "top-1 accuracy on test images"
    )
    x, y = _points(run.frontier, "test_accuracy", "flops")
    axes.plot(x / scale, y, "o-", ms=4, label="one subnet")
    plot_curves(axes, curves, scale, 1)
    percent_axis(axes)
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
    label = f"{unit}FLOPs of the group"
    ordered_lines(over_time, flops / scale, label, [(steps, y) for y in shares.T])
    over_time.set_ylabel("sampling probability")
    width = 0.8 * (np.diff(flops).min() / scale if len(flops) > 1 else 1.0)
    at_end.bar(flops / scale, shares[-1], width, color=ORDERED(np.linspace(0, 1, len(flops))))
    at_end.axhline(1 / len(flops), color=INK, lw=1, ls="--", label="uniform")
    at_end.legend()
    at_end.set(xlabel=label, ylabel=f"probability at step {int(steps[-1]):,}")
    for axes in (over_time, at_end):
        axes.set_ylim(bottom=0)
        percent_axis(axes)
    return figure


def histogram_figure(
    trained: Sequence[float], space: SearchSpace | None, groups: Sequence[float]
) -> Figure:
    """Share of the subnets by FLOPs: what was trained, and uniform archs behind it."""
    uniform: list[float] = []
    if space is not None:
        rng = np.random.default_rng(0)
        uniform = [float(space.flops(space.random_arch(rng))) for _ in range(UNIFORM_ARCHS)]
    everything = [*trained, *uniform, *groups]
    scale, unit = flops_unit(max(everything))
    edges = np.linspace(min(everything), max(everything), BINS + 1) / scale
    dotted = " (dotted: ends of groups)" if groups else ""
    figure, axes = _one_axes(f"{unit}FLOPs of the subnet{dotted}", "share of the subnets")
    for values, label, colour in (
        (uniform, "uniform archs (simulated)", GREY),
        (trained, "this run", BLUE),
    ):
        if len(values):
            shares = np.histogram(np.array(values) / scale, edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.4, label=label)
    for upper in groups[:-1]:
        axes.axvline(upper / scale, color=GREY, lw=0.6, ls=":")
    percent_axis(axes)
    axes.legend()
    return figure


def generator_figure(records: Sequence[Record]) -> Figure:
    """Mean error and mean use of the budget, and the entropy of the policy, over time."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    error, use, entropy = figure.subplots(1, 3)
    for axes, field, label in (
        (error, "mean_error", "mean error of the FLOPs (argmax)"),
        (use, "mean_use", "mean use of the budget (answers)"),
    ):
        axes.plot(*_points(records, field), "o-", ms=3, color=BLUE)
        axes.set(xlabel="training step", ylabel=label)
        thousands(axes)
        percent_axis(axes)
    error.set_ylim(bottom=0)
    # Not zoomed in on: use is within a percent of the same value for most of a run.
    use.set_ylim(min(0.9, use.get_ylim()[0]), 1)
    steps = np.array([number(record, "step") for record in records])
    values = np.array([numbers(record, "entropy") for record in records])
    groups = np.arange(1, values.shape[1] + 1)
    ordered_lines(entropy, groups, "FLOPs group, smallest first", [(steps, y) for y in values.T])
    entropy.set_ylabel("entropy of the policy (nats)")
    entropy.set_ylim(bottom=0)
    return figure


def evaluations_figure(records: Sequence[Record]) -> Figure:
    """Accuracy on held-out training images at fixed budgets over time."""
    lines: dict[float, list[tuple[float, float]]] = {}
    for record in records:
        for row in rows_of(record):
            point = (number(record, "step"), number(row, "held_out_accuracy"))
            lines.setdefault(number(row, "budget_flops"), []).append(point)
    budgets = sorted(lines)
    scale, unit = flops_unit(budgets[-1])
    figure, axes = _one_axes("training step", "accuracy on held-out training images")
    points = [tuple(np.array(lines[budget]).T) for budget in budgets]
    ordered_lines(axes, np.array(budgets) / scale, f"budget ({unit}FLOPs)", points)
    percent_axis(axes)
    return figure


def loss_figure(records: Sequence[Record]) -> Figure:
    """A panel for each loss: what every logged step had, and its running mean."""
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    task, resource = figure.subplots(1, 2)
    for axes, field, label in (
        (task, "loss", "task loss (nats)"),
        (resource, "resource_loss", "resource loss"),
    ):
        x, y = _points(records, field)
        axes.plot(x, y, color=BLUE, lw=0.7, alpha=0.3)
        axes.plot(x, running_mean(y, len(y) // 50), color=BLUE)
        axes.set(xlabel="training step", ylabel=label)
        thousands(axes)
    resource.set_yscale("log", nonpositive="mask")
    return figure


def _lines_figure(
    lines: Mapping[str, Points], xlabel: str, ylabel: str, *, percent: bool = False
) -> Figure:
    """A line for each run; marked where points are few."""
    figure, axes = _one_axes(xlabel, ylabel)
    for name, (x, y) in lines.items():
        axes.plot(x, y, "o-" if percent else "-", ms=3.5, label=name)
    thousands(axes)
    if percent:
        percent_axis(axes)
    axes.legend()
    return figure


# ---------------------------------------------------------------------------------------- parts


def ordered_lines(axes: Axes, values: np.ndarray, label: str, lines: Sequence[Points]) -> None:
    """A line over the steps for each of some ordered values, coloured by it; the scale beside."""
    low, high = float(values.min()), float(values.max())
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), ORDERED)
    for value, (x, y) in zip(values, lines, strict=True):
        axes.plot(x, y, color=scale.to_rgba(value))
    axes.set_xlabel("training step")
    thousands(axes)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(scale, ax=axes, label=label, pad=0.02).outline.set_visible(False)


def thousands(axes: Axes) -> None:
    """Set apart along x."""
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    axes.locator_params(axis="x", nbins=4)


def percent_axis(axes: Axes) -> None:
    """Shares along y, as per cent."""
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it, at most ``window`` of them: (N,) float64."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - max(window, 1), 0)
    return (total[ends] - total[starts]) / (ends - starts)


def _points(records: Sequence[Record], field: str, over: str = "step") -> Points:
    """X and y of the records that have a field, (N,) each, by x."""
    known = [r for r in records if r.get(field) is not None]
    points = sorted((number(r, over), number(r, field)) for r in known)
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def _one_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value
