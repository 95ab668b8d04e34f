"""The plots of a run, each a function from its log to one figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.engine.log import Record, number, numbers
from trainer.report.arch_plot import arch_figure
from trainer.report.draw_plots import group_loss_figure, histogram_figure, uniform_arch_flops
from trainer.report.flops_text import flops_unit, format_flops
from trainer.report.plot_style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SERIES,
    STYLE,
    Plot,
    colour_bar,
    percent_axis,
    running_mean,
    shades,
    spread_labels,
    step_axis,
    thin,
)
from trainer.report.run_record import RunRecord, rows_of
from trainer.report.subnet_plot import subnets_figure

Baselines = Mapping[str, Sequence[Record]]
"""Frontier rows of other runs, by name."""


def draw(run: RunRecord, baselines: Baselines | None = None) -> Iterator[Plot]:
    """Each plot that there is data for. Raises ValueError for a record that lacks a field."""
    steps, groups = run.of_kind("step"), run.of_kind("groups")
    generator, evaluations = run.of_kind("generator"), run.of_kind("evaluation")
    with rc_context(STYLE):
        if run.frontier:
            yield Plot(
                "frontier",
                "Accuracy against FLOPs",
                "Top-1 accuracy of the subnet that answers each budget, on test images and on the "
                "training images held out for decisions"
                + (", and of the baselines on test images." if baselines else "."),
                frontier_figure(run.frontier, baselines or {}),
            )
        if groups:
            last = numbers(groups[-1], "probabilities")
            top = int(np.argmax(last))
            upper = numbers(groups[-1], "groups")
            yield Plot(
                "probabilities",
                "Sampling probability per FLOPs group",
                "The distribution from which training draws budgets, over time and where it ended "
                f"(the paper's Fig. 5). Most likely at the end: the group up to "
                f"{format_flops(upper[top])} FLOPs, {last[top]:.1%} "
                f"(uniform: {1 / len(last):.1%}).",
                groups_figure(groups),
            )
        drawn = run.drawn()
        if drawn:
            yield Plot(
                "histogram",
                "FLOPs of the subnets that were trained",
                (
                    "Every trained subnet"
                    if run.has_every_draw
                    else "The last subnet of every logged step"
                )
                + " of this run, against archs drawn uniformly over every decision's choices, "
                "which pile up in the middle of the range (the paper's Fig. 2).",
                histogram_figure(
                    [flops for _, flops, _ in drawn], uniform_arch_flops(run.space), run.groups
                ),
            )
        answers = run.group_answers()
        if answers:
            what = (
                "each FLOPs group's upper end"
                if run.of_kind("answers") and run.groups
                else "evenly spaced budgets"
            )
            subnets = subnets_figure(answers, run.space)
            if subnets is not None:
                yield Plot(
                    "subnets",
                    "What the generator answers",
                    f"The subnet at {what}, layer by layer from the image (top) to the classes "
                    "(the paper's Fig. 10). A bar is as wide as the block's inner width, its dark "
                    "part as wide as what the block passes on; where a block is missing, it was "
                    "dropped.",
                    subnets,
                )
            yield Plot(
                "archs",
                "The same, decision by decision",
                f"The choice of every decision at {what}; darker is larger, grey where the block "
                "was dropped. Decisions with one choice are left out.",
                arch_figure(answers, run.space),
            )
        if generator:
            yield Plot(
                "generator",
                "How well the generator keeps to budgets",
                "Over 100 budgets across the range: how far the plain argmax is off, how much of "
                "the budget the decoded answers use (they never exceed it), and the entropy of the "
                f"policy per group. At step {int(number(generator[-1], 'step')):,}: "
                f"error {number(generator[-1], 'mean_error'):.1%}, "
                f"use {number(generator[-1], 'mean_use'):.1%}.",
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
                "Task loss and resource loss of the logged steps, and their running means. The "
                "task loss is that of whichever subnet was drawn, so it is noisy by nature.",
                loss_figure(steps),
            )
        if any(loss is not None for _, _, loss in drawn) and len(run.groups) > 1:
            yield Plot(
                "group-loss",
                "Training loss per FLOPs group",
                "Mean task loss of the subnets of each group, over windows of steps.",
                group_loss_figure(drawn, run.groups, run.group_of),
            )
        if any(record.get("lr") is not None for record in steps):
            yield Plot(
                "progress",
                "Learning rate and throughput",
                "The schedule of the supernet's learning rate, and images trained per second.",
                progress_figure(steps),
            )


def frontier_figure(frontier: Sequence[Record], baselines: Baselines | None = None) -> Figure:
    """Accuracy of the subnet that answers each budget, on test and held-out images."""
    rows = sorted(frontier, key=lambda row: number(row, "flops"))
    scale, unit = flops_unit(number(rows[-1], "flops"))
    flops = [number(row, "flops") / scale for row in rows]
    figure = Figure(figsize=(7.6 if baselines else 6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for field, label, colour, style in (
        ("val_accuracy", "held-out training images", GREY, "o--"),
        ("test_accuracy", "test images", BLUE, "o-"),
    ):
        if all(row.get(field) is not None for row in rows):
            accuracy = [number(row, field) for row in rows]
            face = colour if field == "test_accuracy" else PAPER
            axes.plot(
                flops, accuracy, style, color=colour, markerfacecolor=face, lw=1.6, ms=5,
                label=label, zorder=3,
            )  # fmt: skip
            if field == "test_accuracy":
                for place in {0, len(rows) - 1}:
                    axes.annotate(
                        f"{accuracy[place]:.1%}", (flops[place], accuracy[place]),
                        textcoords="offset points", xytext=(0, -14), ha="center", color=colour,
                    )  # fmt: skip
    _draw_baselines(axes, baselines or {}, scale)
    axes.margins(x=0.06, y=0.14)
    axes.set_xlabel(f"{unit}FLOPs (multiply-adds) of the subnet")
    axes.set_ylabel("top-1 accuracy")
    percent_axis(axes)
    if axes.lines:
        axes.legend(loc="lower right")
    return figure


def _draw_baselines(axes: Axes, baselines: Baselines, scale: float) -> None:
    """Test accuracy of other runs, each named at its right end."""
    ends: list[tuple[float, float, str, str]] = []
    for (name, frontier), colour in zip(
        baselines.items(), (*SERIES[1:], *SERIES[1:]), strict=False
    ):
        rows = [row for row in frontier if row.get("test_accuracy") is not None]
        if not rows:
            continue
        rows.sort(key=lambda row: number(row, "flops"))
        x = [number(row, "flops") / scale for row in rows]
        y = [number(row, "test_accuracy") for row in rows]
        axes.plot(x, y, "s-", color=colour, lw=1.1, ms=3, alpha=0.9)
        ends.append((x[-1], y[-1], name, colour))
    if not ends:
        return
    low, high = axes.get_ylim()
    places = spread_labels([y for _, y, _, _ in ends], 0.05 * (high - low))
    for (x_end, _, name, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            name, (x_end, place), textcoords="offset points", xytext=(8, 0), va="center",
            color=colour, fontsize=9, annotation_clip=False,
        )  # fmt: skip


def groups_figure(records: Sequence[Record]) -> Figure:
    """Sampling probability of every FLOPs group over time, and where it ended."""
    flops = np.array(numbers(records[-1], "groups"))
    steps = np.array([number(record, "step") for record in records])
    shares = np.array([numbers(record, "probabilities") for record in records])
    scale, unit = flops_unit(flops.max())
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    over_time, at_end = figure.subplots(1, 2, width_ratios=(1.35, 1))
    colours, scale_of = shades(flops / scale)
    kept = thin(len(steps))
    for group in range(len(flops)):
        over_time.plot(
            steps[kept], shares[kept, group], color=colours[group], lw=1.4,
            drawstyle="steps-post",
        )  # fmt: skip
    step_axis(over_time)
    over_time.set_ylabel("sampling probability")
    colour_bar(figure, scale_of, over_time, f"{unit}FLOPs of the group")
    width = 0.8 * (np.diff(flops).min() / scale if len(flops) > 1 else 1.0)
    at_end.bar(flops / scale, shares[-1], width, color=colours)
    at_end.axhline(1 / len(flops), color=INK, lw=1, ls="--")
    at_end.annotate(
        "uniform", (1, 1 / len(flops)), xycoords=("axes fraction", "data"), ha="right",
        xytext=(0, 4), textcoords="offset points", fontsize=9,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip
    at_end.set_xlabel(f"{unit}FLOPs of the group")
    at_end.set_ylabel(f"probability at step {int(steps[-1]):,}")
    at_end.grid(visible=False, axis="x")
    for axes in (over_time, at_end):
        axes.set_ylim(bottom=0)
        percent_axis(axes)
    return figure


def generator_figure(records: Sequence[Record]) -> Figure:
    """Mean error and mean use of the budget, and the entropy of the policy, over time."""
    has_entropy = records[-1].get("entropy") is not None
    figure = Figure(figsize=(9.6 if has_entropy else 7.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 3 if has_entropy else 2)
    steps = np.array([number(record, "step") for record in records])
    kept = thin(len(steps))
    style = "o-" if len(steps) < 30 else "-"
    for axes, field, label in (
        (panels[0], "mean_error", "mean error of the FLOPs (argmax)"),
        (panels[1], "mean_use", "mean use of the budget (decoded)"),
    ):
        values = np.array([number(record, field) for record in records])
        axes.plot(steps[kept], values[kept], style, ms=3, color=BLUE, lw=1.6)
        axes.annotate(
            f"{values[-1]:.1%}", (steps[-1], values[-1]), textcoords="offset points",
            xytext=(0, 6), ha="right", color=BLUE,
        )  # fmt: skip
        axes.set_ylabel(label)
        percent_axis(axes)
    panels[0].set_ylim(bottom=0)
    # Not zoomed in on: use is within a percent of the same value for most of a run.
    panels[1].set_ylim(min(0.9, panels[1].get_ylim()[0]), 1)
    if has_entropy:
        entropy = np.array([numbers(record, "entropy") for record in records])
        colours, scale_of = shades(np.arange(1, entropy.shape[1] + 1))
        for group in range(entropy.shape[1]):
            panels[2].plot(
                steps[kept], entropy[kept, group], style, ms=2.5, color=colours[group], lw=1.2
            )
        panels[2].set_ylabel("entropy of the policy (nats)")
        colour_bar(figure, scale_of, panels[2], "FLOPs group, smallest first")
        panels[2].set_ylim(bottom=0)
    for axes in panels:
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
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours, scale_of = shades(np.array(budgets) / scale)
    for budget, colour in zip(budgets, colours, strict=True):
        steps, accuracy = zip(*lines[budget], strict=True)
        axes.plot(steps, accuracy, "o-", ms=3, lw=1.4, color=colour)
    colour_bar(figure, scale_of, axes, f"budget ({unit}FLOPs)")
    step_axis(axes)
    axes.set_ylabel("accuracy on held-out training images")
    percent_axis(axes)
    return figure


def loss_figure(records: Sequence[Record]) -> Figure:
    """Task loss of every logged step with its running mean; L_RC below if it was logged."""
    has_resource = any(record.get("resource_loss") is not None for record in records)
    figure = Figure(figsize=(6.4, 4.6 if has_resource else 3.4), layout="constrained")
    panels = figure.subplots(2 if has_resource else 1, 1, sharex=True, squeeze=False)[:, 0]
    _noisy_line(panels[0], records, "loss", BLUE)
    panels[0].set_ylabel("task loss (nats)")
    if has_resource:
        _noisy_line(panels[1], records, "resource_loss", ORANGE)
        panels[1].set_ylabel("resource loss $L_{RC}$")
        panels[1].set_yscale("log", nonpositive="mask")
    step_axis(panels[-1])
    return figure


def progress_figure(records: Sequence[Record]) -> Figure:
    """Learning rate and images per second over the steps."""
    figure = Figure(figsize=(8.6, 2.8), layout="constrained")
    rate, throughput = figure.subplots(1, 2)
    points = [(number(r, "step"), number(r, "lr")) for r in records if r.get("lr") is not None]
    steps, values = np.array(points).T
    kept = thin(len(steps))
    rate.plot(steps[kept], values[kept], color=PURPLE, lw=1.6)
    rate.set_ylabel("learning rate")
    _noisy_line(throughput, records, "images_per_s", BLUE)
    throughput.set_ylabel("images per second")
    for axes in (rate, throughput):
        axes.set_ylim(bottom=0)
        step_axis(axes)
    return figure


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
    kept = thin(len(steps), 800)
    axes.plot(steps[kept], values[kept], color=colour, lw=0.7, alpha=0.3)
    axes.plot(steps[kept], smooth[kept], color=colour, lw=1.8)
