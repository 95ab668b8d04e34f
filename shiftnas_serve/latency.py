"""LatencyTable: how long a subnet of so many FLOPs takes on this machine.

Measured when a bundle is loaded, for a handful of subnets, one image at a time; corrected while
it is served by what answers really took.
"""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import msgspec

MARGIN = 1.1
"""By how much a prediction is stretched before it decides: it is a middle, half of all answers take
longer, and one that is late has taken the time of one that is not."""
FIRST_BUILD_MS = 20.0
"""What building a session takes, until one has been seen."""

# What was observed this long ago counts a third: soon enough for bursts of other work on the cores.
_MEMORY_MS = 250.0
# How fast the overhead follows what is observed.
_STEP = 0.05
# One slow answer (a busy machine) must not make every prediction absurd.
_CORRECTION_RANGE = (0.5, 4.0)
_OVERHEAD_RANGE = 10.0
# How many times as long as a smaller one a subnet may take for each of its FLOPs. Nothing that was
# measured took more than 1.4 times as long.
_STEEPEST = 2.0


class LatencyTable(msgspec.Struct, frozen=True):
    """Milliseconds by FLOPs: straight lines between ``points``, which ascend in both.

    ``overhead_ms`` is what an answer costs beside decoding, waiting and inference. ``correction``
    multiplies the measured milliseconds, ``more_overhead_ms`` adds to the overhead: both follow
    what is observed. What was measured itself is lowered where an answer shows that it is wrong.
    """

    points: tuple[tuple[float, float], ...]
    overhead_ms: float = 1.0
    correction: float = 1.0
    more_overhead_ms: float = 0.0

    def __post_init__(self) -> None:
        assert self.points, "a latency table needs at least one point"

    @classmethod
    def of(cls, measured: Sequence[tuple[float, float]], overhead_ms: float = 1.0) -> LatencyTable:
        """A table from measurements in any order.

        Noise can make a larger subnet look faster; it then counts as slow as the smaller one, so
        that the prediction never errs on the side of missing a budget.
        """
        ordered = sorted(dict(measured).items())
        rising = accumulate((ms for _, ms in ordered), max)
        return cls(
            tuple((flops, ms) for (flops, _), ms in zip(ordered, rising, strict=True)), overhead_ms
        )

    def infer_ms(self, flops: float) -> float:
        """Predicted milliseconds of inference for one image."""
        at = bisect_right(self.points, (flops, math.inf))
        if at == 0:
            return self.points[0][1] * self.correction
        if at == len(self.points):
            low_flops, low_ms = self.points[-1]
            return low_ms * (flops / low_flops) * self.correction
        (low_flops, low_ms), (high_flops, high_ms) = self.points[at - 1], self.points[at]
        part = (flops - low_flops) / (high_flops - low_flops)
        return (low_ms + part * (high_ms - low_ms)) * self.correction

    @property
    def after_ms(self) -> float:
        """What an answer costs beside decoding, waiting and inference, now."""
        return self.overhead_ms + self.more_overhead_ms

    def answer_ms(self, flops: float) -> float:
        """Predicted milliseconds for a whole answer of an idle server, decoding aside."""
        return self.infer_ms(flops) + self.after_ms

    def least_ms(self, flops: float) -> float:
        """The shorter of what an answer takes now and what it took when the server was idle."""
        idle = msgspec.structs.replace(self, correction=1.0, more_overhead_ms=0.0)
        return min(self.answer_ms(flops), idle.answer_ms(flops))

    def flops_inferred_within(self, ms: float) -> float:
        """The most FLOPs whose inference is predicted to take at most ``ms``; 0 when none does."""
        ms = ms / self.correction
        if self.points[0][1] > ms:
            return 0.0
        for (low_flops, low_ms), (high_flops, high_ms) in pairwise(self.points):
            if high_ms > ms:
                return low_flops + (high_flops - low_flops) * (ms - low_ms) / (high_ms - low_ms)
        last_flops, last_ms = self.points[-1]
        return last_flops * ms / last_ms  # as infer_ms goes on beyond what was measured

    def bounded(self, flops: float, ms: float) -> LatencyTable:
        """The table after ``flops`` was seen to take ``ms``, less than the table says.

        Nothing takes longer than goes with that: a smaller subnet no longer, a larger one not much
        longer for each of its FLOPs. Other work can make measurements many times too slow, those of
        large subnets most; and what is believed too slow is never chosen, so nobody would see it.
        """
        known = {
            more: min(known_ms, ms * (_STEEPEST * more / flops if more > flops else 1.0))
            for more, known_ms in self.points
        }
        points = tuple(sorted({**known, flops: ms}.items()))
        return msgspec.structs.replace(self, points=points)

    def observed(self, flops: float, infer_ms: float, *, images: int = 1) -> LatencyTable:
        """The table, a step closer to what an image took.

        ``images``: how many took so long each. The more time an observation covers, the more it
        counts: a machine that is slow is so for a while, whatever runs on it. None becomes much
        faster than it was when it was measured: where one seems so, the measurement was wrong.
        """
        table, expected = self, self.infer_ms(flops) / self.correction
        low, high = _CORRECTION_RANGE
        alone_ms = max(infer_ms * images, 1e-6)  # it takes no longer than the whole batch
        if alone_ms < low * expected:
            # What is slow for a moment does not say how fast it would have been else.
            expected = alone_ms / min(self.correction, 1.0)
            table = self.bounded(flops, expected)
        step = 1 - math.exp(-infer_ms * images / _MEMORY_MS)
        target = min(max(infer_ms / max(expected, 1e-6), low), high)
        moved = self.correction + step * (target - self.correction)
        return msgspec.structs.replace(table, correction=moved)

    def answered(self, overhead_ms: float) -> LatencyTable:
        """The table, a step closer to what an answer cost beside decoding, waiting, inference."""
        # As with inference, one hold-up must not make every prediction absurd.
        seen_ms = min(max(overhead_ms, 0.0), _OVERHEAD_RANGE * self.overhead_ms)
        more_ms = seen_ms - self.overhead_ms
        more_ms = self.more_overhead_ms + _STEP * (more_ms - self.more_overhead_ms)
        return msgspec.structs.replace(self, more_overhead_ms=more_ms)


def measure_ms(
    run: Callable[[], object],
    seconds: float = 0.1,
    pick: Callable[[Sequence[float]], float] = statistics.median,
) -> float:
    """Median milliseconds of ``run()``, or another ``pick``, after two calls that do not count."""
    for _ in range(2):
        run()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 5 or (time.perf_counter() < end and len(samples) < 200):
        start = time.perf_counter()
        run()
        samples.append((time.perf_counter() - start) * 1000)
    return pick(samples)
