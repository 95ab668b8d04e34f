"""Plots of what a run drew: the FLOPs of its subnets, and their losses group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from models.spaces import SPACES, get_space
from trainer.report.flops_text import flops_unit
from trainer.report.plot_style import BLUE, DIM, GREY, colour_bar, percent_axis, shades, step_axis

UNIFORM_ARCHS = 4000
_BINS = 40
_WINDOWS = 40


def uniform_arch_flops(space: str | None) -> list[int]:
    """FLOPs of archs drawn uniformly over every decision's choices; none of an unknown space."""
    if space not in SPACES or space is None:
        return []
    known, rng = get_space(space), np.random.default_rng(0)
    return [known.flops(known.random_arch(rng)) for _ in range(UNIFORM_ARCHS)]


def histogram_figure(
    drawn: Sequence[float], uniform: Sequence[float], groups: Sequence[float]
) -> Figure:
    """Share of the subnets by FLOPs: what was trained, and uniform archs behind it."""
    everything = [*drawn, *uniform, *groups]
    scale, unit = flops_unit(max(everything))
    edges = np.linspace(min(everything), max(everything), _BINS + 1) / scale
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for values, label, colour, alpha in (
        (uniform, "uniform archs (simulated)", GREY, 0.35),
        (drawn, "this run", BLUE, 0.45),
    ):
        if not values:
            continue
        shares = np.histogram(np.array(values) / scale, edges)[0] / len(values)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=alpha)
        axes.stairs(shares, edges, color=colour, lw=1.5, label=label)
    for upper in groups[:-1]:
        axes.axvline(upper / scale, color=DIM, lw=0.6, ls=":")
    axes.set_xlabel(f"{unit}FLOPs of the subnet" + (" (dotted: ends of groups)" if groups else ""))
    axes.set_ylabel("share of the subnets")
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    percent_axis(axes)
    axes.legend(loc="best")
    return figure


def group_loss_figure(
    drawn: Sequence[tuple[float, float, float | None]],
    groups: Sequence[float],
    group_of: Callable[[float], int],
) -> Figure:
    """Mean task loss of each group's subnets over windows of steps."""
    points = [(step, group_of(flops), loss) for step, flops, loss in drawn if loss is not None]
    steps = np.array([step for step, _, _ in points])
    members = np.array([group for _, group, _ in points])
    losses = np.array([loss for _, _, loss in points])
    edges = np.linspace(0, steps.max(), _WINDOWS + 1)
    window = np.clip(np.searchsorted(edges, steps) - 1, 0, _WINDOWS - 1)
    scale, unit = flops_unit(max(groups))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours, scale_of = shades(np.array(groups) / scale)
    for group in range(len(groups)):
        mine = members == group
        count = np.bincount(window[mine], minlength=_WINDOWS)
        total = np.bincount(window[mine], losses[mine], minlength=_WINDOWS)
        full = count > 0
        axes.plot(
            edges[1:][full], total[full] / count[full], "-", color=colours[group], lw=1.5
        )  # windows without a subnet of the group are bridged
    axes.set_ylabel("mean task loss (nats)")
    axes.set_ylim(bottom=0)
    colour_bar(figure, scale_of, axes, f"{unit}FLOPs of the group")
    step_axis(axes)
    return figure
