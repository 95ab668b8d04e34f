"""A drawing of archs: one column per budget, one row per decision, a cell for every choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from models.space.arch import Choice
from models.spaces import SPACES, get_space
from trainer.engine.log import Record, number
from trainer.report.flops_text import flops_unit
from trainer.report.plot_style import GRID, PAPER

_GAP = 0.5  # between kinds of decisions, in rows
_DROPPED = GRID


@dataclass(frozen=True)
class Row:
    """One decision: a label, and the choice and its rank (0..1) per arch; None where dropped."""

    kind: str
    label: str
    cells: tuple[tuple[Choice, float] | None, ...]


def arch_rows(archs: Sequence[Mapping[str, object]], space: str | None) -> list[Row]:
    """The rows of the drawing, in the space's order, leaving out decisions with one choice.

    archs: JSON forms, of one space. space: its name. If that is not known here, rows are made
    from the archs alone: ranks are then among the choices that occur.
    """
    if space is None or space not in SPACES:
        return _rows_of_json(archs)
    known = get_space(space)
    parsed = [known.arch_from_json(arch) for arch in archs]
    rows = []
    for decision in known.decisions:
        if len(decision.choices) == 1:
            continue
        cells = tuple(
            (arch[decision.name], decision.choices.index(arch[decision.name]) / last)
            if decision.block is None or decision.block.present(arch)
            else None
            for arch in parsed
            for last in (len(decision.choices) - 1,)
        )
        rows.append(Row(decision.kind, _label(decision.kind, decision.index), cells))
    # Kinds stay together: a space may interleave them, block by block.
    kinds = list(dict.fromkeys(row.kind for row in rows))
    return sorted(rows, key=lambda row: kinds.index(row.kind))


def arch_figure(frontier: Sequence[Record], space: str | None) -> Figure:
    """Heat map of the archs in frontier rows (fields budget_flops, arch), smallest first."""
    ordered = sorted(frontier, key=lambda row: number(row, "budget_flops"))
    archs: list[Mapping[str, object]] = []
    for row in ordered:
        arch = row.get("arch")
        if not isinstance(arch, Mapping):
            raise ValueError(f"arch is {arch!r} in a frontier row: it must be an object")
        archs.append(arch)
    rows = arch_rows(archs, space)
    budgets = [number(row, "budget_flops") for row in ordered]
    kinds = len({row.kind for row in rows})
    height = len(rows) + _GAP * max(kinds - 1, 0)
    size = (1.8 + 0.55 * len(archs), 0.9 + 0.24 * height)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    places = _draw_cells(axes, rows)
    axes.set_xlim(0, len(archs))
    axes.set_ylim(max(height, 1), 0)
    axes.set_yticks([place + 0.5 for place in places], [row.label for row in rows], fontsize=8)
    scale, unit = flops_unit(budgets[-1])
    labels = [f"{budget / scale:.3g}" for budget in budgets]
    axes.set_xticks([column + 0.5 for column in range(len(archs))], labels)
    axes.set_xlabel(f"budget ({unit}FLOPs)")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in ("left", "bottom", "top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _draw_cells(axes: Axes, rows: Sequence[Row]) -> list[float]:
    """Draw all cells; answers the top of each row."""
    colours = colormaps["Blues"]
    places: list[float] = []
    top = 0.0
    for index, row in enumerate(rows):
        if index and row.kind != rows[index - 1].kind:
            top += _GAP
        places.append(top)
        for column, cell in enumerate(row.cells):
            face = _DROPPED if cell is None else colours(0.12 + 0.78 * cell[1])
            axes.add_patch(Rectangle((column, top), 1, 1, facecolor=face, edgecolor=PAPER))
            if cell is not None:
                ink = "white" if cell[1] > 0.6 else "#1a1a1a"
                place = (column + 0.5, top + 0.53)
                axes.text(*place, f"{cell[0]:g}", ha="center", va="center", fontsize=8, color=ink)
        top += 1
    return places


def _rows_of_json(archs: Sequence[Mapping[str, object]]) -> list[Row]:
    rows = []
    for kind in dict.fromkeys(kind for arch in archs for kind in arch):
        values = [_entries(arch.get(kind)) for arch in archs]
        ranked = sorted({value for entries in values for value in entries})
        if len(ranked) < 2:
            continue
        for index in range(max(len(entries) for entries in values)):
            cells = tuple(
                (entries[index], ranked.index(entries[index]) / (len(ranked) - 1))
                if index < len(entries)
                else None
                for entries in values
            )
            is_list = any(isinstance(arch.get(kind), Sequence) for arch in archs)
            rows.append(Row(kind, _label(kind, index if is_list else None), cells))
    return rows


def _entries(value: object) -> list[Choice]:
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [item for item in items if isinstance(item, int | float)]


def _label(kind: str, index: int | None) -> str:
    words = kind.replace("_", " ")
    return words if index is None else f"{words} {index}"
