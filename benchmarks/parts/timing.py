"""Timing on noisy machines: candidates in turn, so that a slow second hits all of them alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from models.measure.machine import processor


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 10th and 90th percentile over the rounds."""

    median_ms: float
    p10_ms: float
    p90_ms: float


def time_in_turn(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Call each once a round, in turn, after two rounds that do not count."""
    seconds = np.zeros((rounds + 2, len(calls)))
    for turn in range(rounds + 2):
        for index, call in enumerate(calls):
            start = clock()
            call()
            seconds[turn, index] = clock() - start
    milliseconds = 1000 * seconds[2:]
    low, median, high = np.percentile(milliseconds, (10, 50, 90), axis=0)
    return [
        Timing(float(m), float(lo), float(hi)) for m, lo, hi in zip(median, low, high, strict=True)
    ]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: 1 when y rises wherever x does (ties are not expected)."""
    x_ranks, y_ranks = (np.argsort(np.argsort(values)).astype(float) for values in (x, y))
    return float(np.corrcoef(x_ranks, y_ranks)[0, 1])


def machine() -> dict[str, str]:
    """What a figure was measured on, to stand beside it."""
    runtime = next(
        name for name in ("onnxruntime-gpu", "onnxruntime") if _installed(name) is not None
    )
    return {
        "cpu": processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "onnxruntime": f"{version(runtime)}",
    }


def _installed(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(name)
    except PackageNotFoundError:
        return None
