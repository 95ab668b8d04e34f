"""FLOPs (multiply-adds) as people read them: 1.3G on a line, MFLOPs on an axis."""

from __future__ import annotations

_UNITS = (("G", 1e9), ("M", 1e6), ("K", 1e3))


def format_flops(flops: float) -> str:
    """With a unit, as budgets are written: 1.3G, 4.25M, 800K."""
    for unit, size in _UNITS:
        if flops >= size:
            return f"{flops / size:.3g}{unit}"
    return f"{flops:.3g}"


def flops_unit(flops: float) -> tuple[float, str]:
    """What to divide by and the prefix to write, for an axis that ends at `flops`."""
    return next(((size, unit) for unit, size in _UNITS if flops >= size), (1.0, ""))
