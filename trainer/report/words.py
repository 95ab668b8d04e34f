"""Figures as people read them: 1.3G of FLOPs, 3:20 of time, tables of text."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = (("G", 1e9), ("M", 1e6), ("K", 1e3))


def format_flops(flops: float) -> str:
    """With a unit, as budgets are written: 1.3G, 4.25M, 800K."""
    size, unit = flops_unit(flops)
    return f"{flops / size:.3g}{unit}"


def flops_unit(flops: float) -> tuple[float, str]:
    """What to divide by and the prefix to write, for an axis that ends at ``flops``."""
    return next(((size, unit) for unit, size in _UNITS if flops >= size), (1.0, ""))


def format_duration(seconds: float) -> str:
    """Seconds as 45s, 3:20 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest}s"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of figures."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --: |" * len(head)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]
