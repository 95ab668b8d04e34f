"""Timing on noisy machines: candidates in turn, so that a slow second hits all of them alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from models.bundle.folder import Bundle
from models.measure.machine import processor
from models.space.arch import Arch


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


def noise(bundle: Bundle, arch: Arch, batch: int) -> np.ndarray:
    """Images of a subnet's size: what is in them does not change how long they take."""
    side = bundle.space.resolution(arch)
    return np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: 1 when y rises wherever x does (ties are not expected)."""
    x_ranks, y_ranks = (np.argsort(np.argsort(values)).astype(float) for values in (x, y))
    return float(np.corrcoef(x_ranks, y_ranks)[0, 1])


def machine() -> dict[str, str]:
    """What a figure was measured on, to stand beside it."""
    about = {
        "cpu": processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
    }
    for name in ("onnxruntime", "onnxruntime-gpu"):  # whichever of the builds is there
        with suppress(PackageNotFoundError):
            about["onnxruntime"] = version(name)
    return about
