"""Subnets layer by layer, a column each: the paper's Fig. 10."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.engine.log import Record, number
from trainer.report.words import format_flops

MOST_COLUMNS = 8
_PREFIX = re.compile(r"([a-z_]+(?:\.\d+)*)\.")
_SHORT = {"expand_ratio": "×{:g}", "num_heads": "{:g} heads", "mlp_ratio": "MLP ×{:g}"}


@dataclass(frozen=True)
class Part:
    """A block or a single layer of a subnet.

    inner: its largest width, outer: the width that it passes on. words: kernel and choices.
    """

    inner: int
    outer: int
    words: str


def parts(space: SearchSpace, arch: Arch) -> dict[str, Part | None]:
    """Every block of the supernet, from the image to the classes; None if it was dropped.

    Read off the weights that cost FLOPs: the space describes each once.
    """
    weights: dict[str, list[tuple[int, ...]]] = {}
    for weight in space.weights:
        match = _PREFIX.match(weight.name)
        if match is None or weight.positions is None:
            continue
        shapes = weights.setdefault(match[1], [])
        if weight.block is None or weight.block.present(arch):
            shapes.append(weight.shape_at(arch))
    return {name: _part(name, shapes, arch) if shapes else None for name, shapes in weights.items()}


def _part(name: str, shapes: Sequence[tuple[int, ...]], arch: Arch) -> Part:
    kernel = max((shape[-1] for shape in shapes if len(shape) == 4), default=1)
    words = [f"{kernel}×{kernel}"] if kernel > 1 else []
    index = re.search(r"\.(\d+)", name)
    if index is not None:
        choices = {f"{kind}.{index[1]}": text for kind, text in _SHORT.items()}
        words += [text.format(arch[name]) for name, text in choices.items() if name in arch]
    return Part(max(shape[0] for shape in shapes), shapes[-1][0], ", ".join(words))


def subnets_figure(archs: Sequence[tuple[Record, Arch]], space: SearchSpace) -> Figure:
    """A column for each arch with its row (fields budget_flops, flops), smallest first."""
    places = np.linspace(0, len(archs) - 1, min(len(archs), MOST_COLUMNS)).round().astype(int)
    columns = [(archs[place][0], parts(space, archs[place][1])) for place in places]
    names = list(columns[0][1])
    widest = max(part.inner for _, column in columns for part in column.values() if part)
    size = (0.9 + 1.25 * len(columns), 1.1 + 0.33 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for place, (_, column) in enumerate(columns):
        for level, part in enumerate(column.values()):
            _plot_part(axes, place, level, part, widest)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    heads = [
        f"≤ {format_flops(number(row, 'budget_flops'))}\n{format_flops(number(row, 'flops'))} FLOPs"
        for row, _ in columns
    ]
    axes.set_xticks(range(len(columns)), heads, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _plot_part(axes: Axes, place: int, level: int, part: Part | None, widest: int) -> None:
    if part is None:
        axes.plot([place, place], [level - 0.5, level + 0.5], color="#e3e3e5", lw=1.2)
        return
    # Widths by their square root: otherwise the first layers are hairlines beside the last.
    for width, alpha in ((part.inner, 0.3), (part.outer, 0.55)):
        side = 0.46 * (width / widest) ** 0.5
        axes.fill_between([place - side, place + side], level - 0.36, level + 0.36, color="#2f74c0",
                          alpha=alpha, lw=0)  # fmt: skip
    words = f"{part.outer}" + (f" · {part.words}" if part.words else "")
    axes.text(place, level, words, ha="center", va="center", fontsize=7)
