"""Plot: lines in panels, the first series standing out. Shared by the benchmarks of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

_OURS = "#1f5fa8"
_OTHERS = ("#b5651d", "#5b8c5a", "#8a5a99", "#a83232", "#7a7a7a", "#3a8f8f", "#b59b1d")
_PANEL_INCHES = (4.6, 3.4)


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``series``: (x, y) points by name; the same name has one colour in all."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False


def plot_panels(path: Path, title: str, rows: Sequence[Sequence[Panel]]) -> None:
    """Write an image (its format by the name's ending) of panels in rows, with one legend."""
    columns = max(len(row) for row in rows)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(columns * width, len(rows) * height + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    names = list(dict.fromkeys(name for row in rows for panel in row for name in panel.series))
    lines: dict[str, Line2D] = {}
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, row, strict=False):
            lines |= _draw(axes, panel, names)
        for axes in axes_row[len(row) :]:
            axes.axis("off")
    figure.suptitle(title, fontsize=10)
    handles = [lines[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, panel: Panel, names: Sequence[str]) -> dict[str, Line2D]:
    drawn: dict[str, Line2D] = {}
    for name, points in panel.series.items():
        place = names.index(name)
        colour = _OTHERS[(place - 1) % len(_OTHERS)] if place else _OURS
        x, y = zip(*points, strict=True)
        (line,) = axes.plot(x, y, "o-", color=colour, markersize=3)
        line.set(linewidth=1.2 if place else 2.4, zorder=2 if place else 3)
        drawn[name] = line
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set_title(panel.title, fontsize=9)
    if panel.log_x:
        axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return drawn
