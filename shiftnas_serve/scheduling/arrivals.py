"""Arrivals: what is learnt from how images came, to leave time for those that will come.

A queue says what waits. By then it may be too late: the first jobs of a burst, and of a lasting
load, find an empty one, and run as large as that alone allows they take the time of those behind
them, which are then refused. That costs whole answers, where larger subnets win a few points.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from shiftnas_serve.planning.planner import Plan
from shiftnas_serve.scheduling.pace import Pace

# Arrivals that are looked back at, the time, and the share of them whose followers would have had
# room. Compared in virtual time (docs/experiments/latency-budgets.md).
_REMEMBERED = 256
_MEMORY_S = 10.0
_SHARE = 0.85
# Looked at anew after so many arrivals, or so long.
_RENEWED_AFTER = 16
_RENEWED_S = 1.0


class Arrivals:
    """Remembers when images came, and what was planned for them."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._not_in_pace: deque[tuple[float, Plan]] = deque(maxlen=_REMEMBERED)
        self._shrinking: deque[tuple[float, Plan]] = deque(maxlen=_REMEMBERED)
        self._new = 0
        self._reserve_ms, self._renewed_s = 0.0, 0.0

    def came(self, at_s: float, plan: Plan) -> None:
        """An image came."""
        self._not_in_pace.append((at_s, plan))
        # Others are due much later, when the server's own time for an answer is over: they wait.
        if plan.shrinks:
            self._shrinking.append((at_s, plan))
            self._new += 1

    def pace_ms(self, now_s: float, cost_ms: Callable[[Plan], float]) -> float:
        """What one that shrinks can take if they keep coming as they do; infinite if none came.

        ``cost_ms``: what one with this plan takes.
        """
        while self._not_in_pace:
            at_s, plan = self._not_in_pace.popleft()
            self._pace.came(at_s, None if plan.shrinks else cost_ms(plan))
        return self._pace.share_ms(now_s)

    def reserve_ms(self, now_s: float, least_ms: Callable[[Plan], float]) -> float:
        """The work that usually piles up after a job, were all of it run as small as it may.

        Of jobs with latency budgets. Most jobs of a steady load had nothing behind them, and
        nothing is kept; in bursts it is most of what a deadline leaves. ``least_ms``: what one
        with this plan takes at least.
        """
        if self._new >= _RENEWED_AFTER or now_s >= self._renewed_s + _RENEWED_S:
            self._new, self._renewed_s = 0, now_s
            while self._shrinking and self._shrinking[0][0] < now_s - _MEMORY_S:
                self._shrinking.popleft()
            enough = len(self._shrinking) >= _RENEWED_AFTER
            self._reserve_ms = self._usual_ms(least_ms) if enough else 0.0
        return self._reserve_ms

    def _usual_ms(self, least_ms: Callable[[Plan], float]) -> float:
        # Work that came up to the k-th arrival, less the time until then: where it has risen
        # highest after an arrival, that much waited.
        came_ms = 1000 * np.array([at_s for at_s, _ in self._shrinking])
        work_ms = np.cumsum([least_ms(plan) for _, plan in self._shrinking])
        risen_ms = work_ms - came_ms
        highest_ms = np.maximum.accumulate(risen_ms[::-1])[::-1]
        return float(np.quantile(highest_ms - risen_ms, _SHARE))
