"""The plots of a report, each a function from what runs logged to one figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.spaces import SPACES, get_space
from trainer.engine.log import Record, number, numbers
from trainer.intervals import interval
from trainer.pairs import DRAWN_AT, Curve
from trainer.report.run_record import RunRecord, rows_of
from trainer.report.subnet_plot import subnets_figure
from trainer.report.words import flops_unit, format_flops

STYLE = Path(__file__).with_name("report.mplstyle")
BLUE, ORANGE, PURPLE, GREY, INK = "#2f74c0", "#d9772b", "#8d62c9", "#8c8c8e", "#222223"
# Groups have an order. Hue moves one way; every colour stands out from white.
ORDERED = LinearSegmentedColormap.from_list(
    "groups", ["#23998c", "#2f74c0", "#8d62c9", "#cf4d8f", "#dd7f2e"]
)
UNIFORM_ARCHS = 4000
"""Drawn at random, to show what a run's subnets are compared with."""
BINS = 40
MOST_POINTS = 800
"""Of a line: more only make the page large."""


@dataclass(frozen=True)
class Plot:
    """A figure. name: of its file. caption: what it shows, also for screen readers."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw(runs: Sequence[RunRecord]) -> Iterator[Plot]:
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
        yield from _draw_several(runs) if runs[1:] else _draw_one(runs[0])


def _draw_several(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    losses = {run.name: _points(run.of_kind("step"), "loss") for run in runs}
    if any(len(x) for x, _ in losses.values()):
        smooth = {name: (x, running_mean(y, len(y) // 25)) for name, (x, y) in losses.items()}
        yield Plot(
            "loss",
            "Training loss",
            "Running mean of the task loss of whichever subnet was drawn: it is lower where larger "
            "subnets are drawn.",
            _lines_figure(smooth, "task loss (nats)"),
        )
    if any(run.groups for run in runs):
        yield Plot(
            "probabilities",
            "Sampling probability per FLOPs group",
            "The distribution from which training draws budgets, at each run's last update. Runs "
            "without one are left out.",
            _last_probabilities_figure(runs),
        )
    errors = {run.name: _points(run.of_kind("generator"), "mean_error") for run in runs}
    if any(len(x) for x, _ in errors.values()):
        yield Plot(
            "generator",
            "Error of the generator",
            "How far the FLOPs of its plain argmax are off the budget, on average over 100 "
            "budgets across the range.",
            _lines_figure(errors, "mean error (argmax)", percent_axis, "o-"),
        )


def _draw_one(run: RunRecord) -> Iterator[Plot]:
    steps, groups, generator = (run.of_kind(kind) for kind in ("step", "groups", "generator"))
    curves = [
        Curve.from_json(row) for one in run.of_kind("confidence")[-1:] for row in rows_of(one)
    ]
    if run.frontier and curves:
        yield Plot(
            "confidence",
            "With a confidence",
            "A small subnet answers, and a larger one where it is less sure than was asked for: "
            "accuracy on test images by what is spent on average, at confidences of "
            f"{', '.join(f'{wish:.0%}' for wish in DRAWN_AT)}, with 95 % intervals.",
            confidence_figure(run, curves),
        )
    classes = run.start("classes")
    space = None
    if run.setting("space") in SPACES:
        space = get_space(run.setting("space"), int(str(classes)) if classes else None)
    trained = run.trained()
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
            histogram_figure([flops for _, flops, _ in trained], space, run.groups),
        )
    answers = run.group_answers()
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
        yield Plot(
            "archs",
            "The same, decision by decision",
            "The choice of every decision; darker is larger, blank where the block was dropped. "
            "Decisions with one choice are left out.",
            archs_figure(archs, space),
        )
    if generator:
        yield Plot(
            "generator",
            "How well the generator keeps to budgets",
            "Over 100 budgets across the range: how far the plain argmax is off, how much of the "
            "budget the decoded answers use (they never exceed it), and the entropy of the policy "
            f"per group. At the end: error {number(generator[-1], 'mean_error'):.1%}, use "
            f"{number(generator[-1], 'mean_use'):.1%}.",
            generator_figure(generator),
        )
    if run.of_kind("evaluation"):
        yield Plot(
            "evaluations",
            "Accuracy during training",
            "Accuracy of what is served at fixed budgets, on the held-out training images.",
            evaluations_figure(run.of_kind("evaluation")),
        )
    if steps:
        yield Plot(
            "loss",
            "Training loss",
            "Task loss and resource loss of the logged steps, and their running means. The task "
            "loss is that of whichever subnet was drawn, so it is noisy by nature.",
            _noisy_figure(steps, {"loss": "task loss (nats)", "resource_loss": "resource loss"}),
        )
    if len(run.groups) > 1 and any(loss is not None for _, _, loss in trained):
        yield Plot(
            "group-loss",
            "Training loss per FLOPs group",
            "Mean task loss of the subnets of each group, over windows of steps.",
            group_loss_figure(trained, run.groups),
        )
    if any("lr" in record for record in steps):
        yield Plot(
            "progress",
            "Learning rate and throughput",
            "The schedule of the supernet's learning rate, and images trained per second.",
            _noisy_figure(steps, {"lr": "learning rate", "images_per_s": "images per second"}),
        )


# ---------------------------------------------------------------------------------- the figures


def frontier_figure(runs: Sequence[RunRecord]) -> Figure:
    """Accuracy of the subnet that answers each budget: of one run also on held-out images."""
    scale, unit = flops_unit(max(number(row, "flops") for run in runs for row in run.frontier))
    fields = {"test_accuracy": "o-"} if runs[1:] else {"val_accuracy": "o--", "test_accuracy": "o-"}
    words = {"val_accuracy": "held-out training images", "test_accuracy": "test images"}
    figure, axes = _one_axes()
    for run in runs:
        for field, style in fields.items():
            x, y = _points(run.frontier, field, "flops")
            if len(x):
                label = run.name if runs[1:] else words[field]
                (line,) = axes.plot(x / scale, y, style, label=label, ms=4)
                if images := run.images(field):
                    low, high = zip(*(interval(value, images) for value in y), strict=True)
                    colour = line.get_color()
                    axes.fill_between(x / scale, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xlabel(f"{unit}FLOPs (multiply-adds) of the subnet")
    axes.set_ylabel("top-1 accuracy")
    percent_axis(axes)
    axes.legend(loc="lower right")
    return figure


def draw_curves(axes: Axes, curves: Sequence[Curve], scale: float, of: float) -> None:
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
    figure, axes = _one_axes()
    x, y = _points(run.frontier, "test_accuracy", "flops")
    axes.plot(x / scale, y, "o-", ms=4, label="one subnet")
    draw_curves(axes, curves, scale, 1)
    axes.set_xlabel(f"{unit}FLOPs (multiply-adds), on average")
    axes.set_ylabel("top-1 accuracy on test images")
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
    ordered_lines(
        over_time, flops / scale, f"{unit}FLOPs of the group", [(steps, y) for y in shares.T]
    )
    over_time.set_ylabel("sampling probability")
    width = 0.8 * (np.diff(flops).min() / scale if len(flops) > 1 else 1.0)
    at_end.bar(flops / scale, shares[-1], width, color=ORDERED(np.linspace(0, 1, len(flops))))
    at_end.axhline(1 / len(flops), color=INK, lw=1, ls="--", label="uniform")
    at_end.legend()
    at_end.set_xlabel(f"{unit}FLOPs of the group")
    at_end.set_ylabel(f"probability at step {int(steps[-1]):,}")
    step_axis(over_time)
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
    figure, axes = _one_axes()
    for values, label, colour in (
        (uniform, "uniform archs (simulated)", GREY),
        (trained, "this run", BLUE),
    ):
        if len(values):
            shares = np.histogram(np.array(values) / scale, edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.4, label=label)
    for upper in groups[:-1]:
        axes.axvline(upper / scale, color=GREY, lw=0.6, ls=":")
    axes.set_xlabel(f"{unit}FLOPs of the subnet" + (" (dotted: ends of groups)" if groups else ""))
    axes.set_ylabel("share of the subnets")
    percent_axis(axes)
    axes.legend()
    return figure


def archs_figure(archs: Sequence[tuple[Record, Arch]], space: SearchSpace) -> Figure:
    """Heat map: a column for each arch, a row for each decision that has a choice."""
    decisions = [decision for decision in space.decisions if len(decision.choices) > 1]
    decisions.sort(key=lambda decision: [d.kind for d in space.decisions].index(decision.kind))
    ranks = np.full((len(decisions), len(archs)), np.nan)
    size = (1.8 + 0.55 * len(archs), 0.9 + 0.24 * len(decisions))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for row, decision in enumerate(decisions):
        for column, (_, arch) in enumerate(archs):
            if decision.block is None or decision.block.present(arch):
                choice = arch[decision.name]
                rank = decision.choices.index(choice) / (len(decision.choices) - 1)
                ranks[row, column] = rank
                ink = "white" if rank > 0.6 else INK
                axes.text(column, row, f"{choice:g}", ha="center", va="center", color=ink, size=8)
    axes.imshow(ranks, cmap="Blues", vmin=-0.15, vmax=1.1, aspect="auto")
    axes.set_yticks(range(len(decisions)), [_label(d.name) for d in decisions], fontsize=8)
    budgets = [format_flops(number(row, "budget_flops")) for row, _ in archs]
    axes.set_xticks(range(len(archs)), budgets, fontsize=8)
    axes.set_xlabel("budget (FLOPs)")
    axes.grid(visible=False)
    return figure


def generator_figure(records: Sequence[Record]) -> Figure:
    """Mean error and mean use of the budget, and the entropy of the policy, over time."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    error, use, entropy = figure.subplots(1, 3)
    for axes, field, label in (
        (error, "mean_error", "mean error of the FLOPs (argmax)"),
        (use, "mean_use", "mean use of the budget (decoded)"),
    ):
        axes.plot(*_points(records, field), "o-", ms=3, color=BLUE)
        axes.set_ylabel(label)
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
    for axes in (error, use, entropy):
        step_axis(axes)
    return figure


def evaluations_figure(records: Sequence[Record]) -> Figure:
    """Accuracy on held-out training images at fixed budgets over time."""
    lines: dict[float, list[tuple[float, float]]] = {}
    for record in records:
        for row in rows_of(record):
            point = (number(record, "step"), number(row, "val_accuracy"))
            lines.setdefault(number(row, "budget_flops"), []).append(point)
    budgets = sorted(lines)
    scale, unit = flops_unit(budgets[-1])
    figure, axes = _one_axes()
    points = [tuple(np.array(lines[budget]).T) for budget in budgets]
    ordered_lines(axes, np.array(budgets) / scale, f"budget ({unit}FLOPs)", points)
    step_axis(axes)
    axes.set_ylabel("accuracy on held-out training images")
    percent_axis(axes)
    return figure


def group_loss_figure(
    trained: Sequence[tuple[float, float, float | None]], groups: Sequence[float]
) -> Figure:
    """Mean task loss of each group's subnets over windows of steps."""
    known = [(step, flops, loss) for step, flops, loss in trained if loss is not None]
    steps, flops, losses = np.array(known).T
    members = np.searchsorted(groups, flops)
    edges = np.linspace(0, steps.max(), BINS + 1)
    scale, unit = flops_unit(max(groups))
    lines = []
    for group in range(len(groups)):
        mine = members == group
        count, _ = np.histogram(steps[mine], edges)
        total, _ = np.histogram(steps[mine], edges, weights=losses[mine])
        full = count > 0  # windows without a subnet of the group are bridged
        lines.append((edges[1:][full], total[full] / count[full]))
    figure, axes = _one_axes()
    ordered_lines(axes, np.array(groups) / scale, f"{unit}FLOPs of the group", lines)
    axes.set_ylabel("mean task loss (nats)")
    axes.set_ylim(bottom=0)
    step_axis(axes)
    return figure


def _noisy_figure(records: Sequence[Record], fields: Mapping[str, str]) -> Figure:
    """A panel for each field: what every logged step had, and its running mean."""
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    for axes, (field, label) in zip(figure.subplots(1, len(fields)), fields.items(), strict=True):
        x, y = _points(records, field)
        kept = thin(len(x))
        axes.plot(x[kept], y[kept], color=BLUE, lw=0.7, alpha=0.3)
        axes.plot(x[kept], running_mean(y, len(y) // 50)[kept], color=BLUE)
        axes.set_ylabel(label)
        if field == "resource_loss":
            axes.set_yscale("log", nonpositive="mask")
        step_axis(axes)
    return figure


def _last_probabilities_figure(runs: Sequence[RunRecord]) -> Figure:
    scale, unit = flops_unit(max(flops for run in runs for flops in run.groups))
    figure, axes = _one_axes()
    for run in runs:
        if run.groups:
            last = numbers(run.of_kind("groups")[-1], "probabilities")
            axes.plot(np.array(run.groups) / scale, last, "s-", ms=3.5, label=run.name)
    axes.set_xlabel(f"{unit}FLOPs of the group")
    axes.set_ylabel("sampling probability")
    percent_axis(axes)
    axes.legend()
    return figure


def _lines_figure(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label: str,
    dress: Callable[[Axes], None] | None = None,
    style: str = "-",
) -> Figure:
    """A line for each run over the steps."""
    figure, axes = _one_axes()
    for name, (x, y) in lines.items():
        kept = thin(len(x))
        axes.plot(x[kept], y[kept], style, ms=3.5, label=name)
    axes.set_ylabel(label)
    step_axis(axes)
    if dress is not None:
        dress(axes)
    axes.legend()
    return figure


# ---------------------------------------------------------------------------------------- parts


def ordered_lines(
    axes: Axes,
    values: np.ndarray,
    label: str,
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """A line for each of some ordered values, coloured by it, with the scale beside the axes."""
    low, high = float(values.min()), float(values.max())
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), ORDERED)
    for value, (x, y) in zip(values, lines, strict=True):
        kept = thin(len(x))
        axes.plot(x[kept], y[kept], color=scale.to_rgba(value))
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(scale, ax=axes, label=label, pad=0.02).outline.set_visible(False)


def step_axis(axes: Axes) -> None:
    """Training steps along x, with thousands set apart."""
    axes.set_xlabel("training step")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.locator_params(axis="x", nbins=4)


def percent_axis(axes: Axes) -> None:
    """Shares along y, as per cent."""
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))


def thin(count: int) -> np.ndarray:
    """Places of at most ``MOST_POINTS`` of ``count`` points, the first and the last among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, MOST_POINTS)).astype(np.int64))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it, at most ``window`` of them: (N,) float64."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - max(window, 1), 0)
    return (total[ends] - total[starts]) / (ends - starts)


def _points(
    records: Sequence[Record], field: str, over: str = "step"
) -> tuple[np.ndarray, np.ndarray]:
    """X and y of the records that have a field, (N,) each, by x."""
    known = [r for r in records if r.get(field) is not None]
    points = sorted((number(r, over), number(r, field)) for r in known)
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def _one_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, 3.8), layout="constrained")
    return figure, figure.add_subplot()


def _label(name: str) -> str:
    return name.replace("_", " ").replace(".", " ")


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value
