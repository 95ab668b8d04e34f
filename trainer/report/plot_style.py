"""One look for every plot, and how a figure becomes a file or part of a page."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

# On a page these three follow its light or dark scheme; data keeps its colours, which are of
# middle lightness and read on both.
INK, DIM, GRID = "#222223", "#6b6b6d", "#e3e3e5"
PAPER = "#fffffe"
PAGE_VARIABLES = {INK: "--ink", DIM: "--dim", GRID: "--grid", PAPER: "--paper"}

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = (
    "#2f74c0", "#d9772b", "#2a9d78", "#8d62c9", "#cf4d6f", "#8c8c8e",
)  # fmt: skip
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, "#a17a2d", "#4aa3b8", GREY)
"""Colours of things without an order: runs, samplers."""

# Groups have an order. Hue moves one way; every colour stands out from white and from black.
ORDERED = LinearSegmentedColormap.from_list(
    "groups", ["#23998c", "#2f74c0", "#8d62c9", "#cf4d8f", "#dd7f2e"]
)

STYLE: dict[str, object] = {
    "figure.dpi": 150,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "font.size": 10,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": DIM,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "shiftnas",
}
_MAX_POINTS = 1500  # per line: more only make the SVG large
_MAX_SVG_BYTES = 300_000


@dataclass(frozen=True)
class Plot:
    """A figure with what a page says of it.

    name: of its file. caption: what it shows, in a sentence or two; it is also what a screen
    reader reads.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write path.png, and path.svg where that is small; answers what was written."""
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    with rc_context(STYLE):
        _lay_out(figure)
        figure.savefig(png, metadata={"Software": None})
        text = io.BytesIO()
        # Without a date the same data gives the same file.
        figure.savefig(text, format="svg", metadata={"Date": None})
    if text.tell() > _MAX_SVG_BYTES:
        svg.unlink(missing_ok=True)  # one of an earlier report would contradict the PNG
        return [png]
    svg.write_bytes(text.getvalue())
    return [png, svg]


def inline_svg(plot: Plot) -> str:
    """The figure as an <svg> element that takes ink, grid and paper from the page's CSS.

    Text stays text: it can be selected and searched, and prints sharply.
    """
    buffer = io.StringIO()
    nothing: dict[str, None] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context({**STYLE, "svg.fonttype": "none"}):
        _lay_out(plot.figure)
        plot.figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several figures share a page: names in one must not be taken for those of another.
    svg = re.sub(r'\bid="', f'id="{plot.name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{plot.name}-", svg)
    svg = re.sub(r'href="#', f'href="#{plot.name}-', svg)
    for colour, variable in PAGE_VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    width, height = (round(72 * inches) for inches in plot.figure.get_size_inches())
    opening = (
        f'<svg role="img" aria-labelledby="{plot.name}-caption" viewBox="0 0 {width} {height}"'
    )
    svg = re.sub(r"<svg\b[^>]*?(?= xmlns)[^>]*>", "", svg, count=1)
    namespace = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{opening} {namespace} style="max-width: {round(1.28 * width)}px">{svg.strip()}'


def _lay_out(figure: Figure) -> None:
    """Place the axes for good: matplotlib would do it again for each file, which takes longest."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def shades(values: np.ndarray) -> tuple[np.ndarray, ScalarMappable]:
    """A colour per value, (N, 4), and what a colour bar needs to show the scale."""
    low, high = float(values.min()), float(values.max())
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), ORDERED)
    return np.asarray(scale.to_rgba(values)), scale


def colour_bar(figure: Figure, scale: ScalarMappable, axes: Axes, label: str) -> None:
    """The scale of `shades` beside the axes."""
    bar = figure.colorbar(scale, ax=axes, label=label, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def step_axis(axes: Axes) -> None:
    """Training steps along x, with thousands set apart."""
    axes.set_xlabel("training step")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.locator_params(axis="x", nbins=4)


def percent_axis(axes: Axes) -> None:
    """Shares along y, as per cent."""
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))


def thin(count: int, most: int = _MAX_POINTS) -> np.ndarray:
    """At most `most` places of `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it, at most `window` of them: (N,) float64."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def spread_labels(values: list[float], gap: float) -> list[float]:
    """Places for labels beside lines that end at `values`: as near as they can be `gap` apart."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    places = [0.0] * len(values)
    last = -np.inf
    for place in order:
        last = max(values[place], last + gap)
        places[place] = last
    # What was pushed up moves all down by half, so that labels straddle their lines.
    shift = sum(placed - value for placed, value in zip(places, values, strict=True))
    return [placed - shift / max(len(values), 1) for placed in places]
