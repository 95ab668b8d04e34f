"""Pace: what time a worker has for each job with a latency budget, by how often they come.

Where jobs take longer than the worker has time between two of them, the queue grows until some
must be refused. The queue itself shows that too, but late: when a burst of a lasting load begins,
its first jobs would be run as large as on an idle server.
"""

from __future__ import annotations

import math

# What came this long ago counts a third.
_MEMORY_S = 3.0


class Pace:
    """Rates of late: of jobs that may shrink, and of the work of those that may not."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._shrinking_per_s = self._busy = 0.0

    def came(self, now_s: float, fixed_ms: float | None = None) -> None:
        """A job came. ``fixed_ms``: what it takes, if no smaller subnet may serve it."""
        self._forget(now_s)
        if fixed_ms is None:
            self._shrinking_per_s += 1 / _MEMORY_S
        else:
            self._busy += fixed_ms / 1000 / _MEMORY_S

    def share_ms(self, now_s: float) -> float:
        """What a job that may shrink can take in the long run; infinite when none came."""
        self._forget(now_s)
        if self._shrinking_per_s == 0:
            return math.inf
        return 1000 * max(1 - self._busy, 0.0) / self._shrinking_per_s

    def _forget(self, now_s: float) -> None:
        kept = math.exp(-max(now_s - self._at_s, 0.0) / _MEMORY_S)
        self._shrinking_per_s *= kept
        self._busy *= kept
        self._at_s = now_s
