"""Arrivals: what a worker learns from how jobs came, to leave time for those that will come.

A queue says what waits. By then it may be too late: the first jobs of a burst, and of a lasting
load, find an empty one, and run as large as that alone allows they take the time of those behind
them, which are then refused. That costs whole answers, where larger subnets win a few points.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

import numpy as np

from shiftnas_serve.frames import Job
from shiftnas_serve.pace import Pace

# Arrivals that are looked back at, after how many new ones anew, and the share of them whose
# followers would have had room. Compared in virtual time (docs/experiments.md, 2026-11-26).
_REMEMBERED = 256
_RENEWED_AFTER = 16
_SHARE = 0.85


class Arrivals:
    """Remembers when jobs came, from all HTTP processes."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[float, bytes, bool]] = deque(maxlen=_REMEMBERED)
        self._pace = Pace()
        self._not_in_pace = self._not_in_reserve = 0
        self._reserve_ms = 0.0

    def came(self, job: Job) -> None:
        """A job came."""
        self._jobs.append((job.sent_s, job.key, job.aim_s is not None))
        self._not_in_pace += 1
        self._not_in_reserve += 1

    def pace_ms(self, now_s: float, cost_ms: Callable[[bytes], float]) -> float:
        """What a job that shrinks can take if jobs keep coming as they do; infinite if none came.

        ``cost_ms``: what the subnet of this key takes.
        """
        known = max(len(self._jobs) - self._not_in_pace, 0)
        for sent_s, key, shrinks in islice(self._jobs, known, None):
            self._pace.came(sent_s, None if shrinks else cost_ms(key))
        self._not_in_pace = 0
        return self._pace.share_ms(now_s)

    def reserve_ms(self, least_ms: Callable[[bytes, bool], float]) -> float:
        """The work that usually piles up after a job, were all of it run as small as it may.

        Most jobs of a steady load had nothing behind them, and nothing is kept; in bursts it is
        most of what a deadline leaves. ``least_ms``: what a job takes at least, by its key and
        whether it may shrink.
        """
        if self._not_in_reserve >= _RENEWED_AFTER:
            self._not_in_reserve = 0
            self._reserve_ms = float(np.quantile(self._piled_up_ms(least_ms), _SHARE))
        return self._reserve_ms

    def _piled_up_ms(self, least_ms: Callable[[bytes, bool], float]) -> np.ndarray:
        # Work that came up to the k-th arrival, less the time until then: where it has risen
        # highest after an arrival, that much waited.
        came_ms = 1000 * np.array([sent_s for sent_s, _, _ in self._jobs])
        work_ms = np.cumsum([least_ms(key, shrinks) for _, key, shrinks in self._jobs])
        risen_ms = work_ms - came_ms
        highest_ms = np.maximum.accumulate(risen_ms[::-1])[::-1]
        return highest_ms - risen_ms
