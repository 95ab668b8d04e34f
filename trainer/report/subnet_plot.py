"""Subnets drawn layer by layer, a column each: the paper's Fig. 10."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.spaces import SPACES, get_space
from trainer.engine.log import Record, number
from trainer.report.flops_text import format_flops
from trainer.report.plot_style import BLUE, DIM, GRID, INK

MOST_COLUMNS = 8
_PREFIX = re.compile(r"([a-z_]+(?:\.\d+)*)\.")
_SHORT = {"expand_ratio": "×{:g}", "num_heads": "{:g} heads", "mlp_ratio": "MLP ×{:g}"}


@dataclass(frozen=True)
class Part:
    """A block or a single layer of a subnet. None in place of one is a dropped block.

    inner: its largest width, outer: the width that it passes on. words: kernel and choices.
    """

    name: str
    inner: int
    outer: int
    words: str


def parts(space: SearchSpace, arch: Arch) -> list[tuple[str, Part | None]]:
    """Name and part, from the image to the classes, for every block of the supernet.

    Read off the weights that cost FLOPs: the space describes each once.
    """
    weights: dict[str, list[tuple[int, ...] | None]] = {}
    for weight in space.weights:
        match = _PREFIX.match(weight.name)
        if match is None or weight.positions is None:
            continue
        present = weight.block is None or weight.block.present(arch)
        weights.setdefault(match[1], []).append(weight.shape_at(arch) if present else None)
    answer: list[tuple[str, Part | None]] = []
    for name, shapes in weights.items():
        there = [shape for shape in shapes if shape is not None]
        if not there:
            answer.append((name, None))
            continue
        kernel = max((shape[-1] for shape in there if len(shape) == 4), default=1)
        words = [f"{kernel}×{kernel}"] if kernel > 1 else []
        index = re.search(r"\.(\d+)", name)
        if index is not None:
            words += [
                text.format(arch[f"{kind}.{index[1]}"])
                for kind, text in _SHORT.items()
                if f"{kind}.{index[1]}" in arch
            ]
        inner = max(shape[0] for shape in there)
        answer.append((name, Part(name, inner, there[-1][0], ", ".join(words))))
    return answer


def subnets_figure(rows: Sequence[Record], space: str | None) -> Figure | None:
    """A column per row (fields budget_flops, flops, arch); None for a space unknown here."""
    if space is None or space not in SPACES:
        return None
    known = get_space(space)
    ordered = sorted(rows, key=lambda row: number(row, "budget_flops"))
    if len(ordered) > MOST_COLUMNS:
        places = np.linspace(0, len(ordered) - 1, MOST_COLUMNS).round().astype(int)
        ordered = [ordered[place] for place in places]
    columns = []
    for row in ordered:
        document = row["arch"]
        assert isinstance(document, Mapping)
        columns.append((row, parts(known, known.arch_from_json(document))))
    blocks = len(columns[0][1])
    widest = max(part.inner for _, column in columns for _, part in column if part is not None)
    figure = Figure(figsize=(0.9 + 1.25 * len(columns), 1.1 + 0.33 * blocks), layout="constrained")
    axes = figure.add_subplot()
    for place, (row, column) in enumerate(columns):
        _draw_column(axes, place, column, widest)
        words = f"≤ {format_flops(number(row, 'budget_flops'))}"
        axes.text(place, -0.95, words, ha="center", va="center", fontsize=9, fontweight="bold")
        words = f"{format_flops(number(row, 'flops'))} FLOPs"
        axes.text(place, -0.45 + blocks, words, ha="center", va="center", fontsize=8, color=DIM)
    axes.set_xlim(-0.55, len(columns) - 0.45)
    axes.set_ylim(blocks - 0.1, -1.4)
    names = [name for name, _ in columns[0][1]]
    axes.set_yticks(range(blocks), [name.replace("_", " ") for name in names], fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _draw_column(
    axes: Axes, place: int, column: Sequence[tuple[str, Part | None]], widest: int
) -> None:
    for level, (_, part) in enumerate(column):
        if part is None:
            axes.plot([place, place], [level - 0.5, level + 0.5], color=GRID, lw=1.2, zorder=0)
            continue
        # Widths by their square root: otherwise the first layers are hairlines beside the last.
        inner, outer = (0.92 * (width / widest) ** 0.5 for width in (part.inner, part.outer))
        for width, alpha in ((inner, 0.3), (outer, 0.55)):
            box = FancyBboxPatch(
                (place - width / 2, level - 0.36), width, 0.72,
                boxstyle="round,pad=0,rounding_size=0.06", facecolor=BLUE, alpha=alpha,
                edgecolor="none", mutation_aspect=3,
            )  # fmt: skip
            axes.add_patch(box)
        words = f"{part.outer}" + (f" · {part.words}" if part.words else "")
        axes.text(place, level + 0.02, words, ha="center", va="center", fontsize=7, color=INK)
