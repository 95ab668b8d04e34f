"""Reserve: the time kept free for the jobs that usually come after one.

Bursts have a first job, and it finds an empty queue. Run as large as that alone allows, it and the
next few take the time of those at the end, which are then refused: that costs a whole answer, and
the larger subnets had won a few points. So a worker looks back: had every job run as small as it
may, how much work would have piled up after each arrival? Most arrivals of a steady load had
nothing after them, and nothing is kept; in bursts it is most of what a deadline leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from shiftnas_serve.frames import Job

# Arrivals that are looked back at, after how many new ones anew, and the share of them whose
# followers would have had room. Compared in virtual time (docs/experiments.md, 2026-11-26).
_REMEMBERED = 256
_RENEWED_AFTER = 16
_SHARE = 0.85


class Reserve:
    """Remembers when jobs came."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[float, bytes, bool]] = deque(maxlen=_REMEMBERED)
        self._new = 0
        self._ms = 0.0

    def came(self, job: Job) -> None:
        """A job came."""
        self._jobs.append((job.sent_s, job.key, job.aim_s is not None))
        self._new += 1

    def ms(self, least_ms: Callable[[bytes, bool], float]) -> float:
        """What piled up after most arrivals, in milliseconds of work.

        ``least_ms``: what a job takes at least, by its key and whether it may shrink.
        """
        if self._new >= _RENEWED_AFTER:
            self._new = 0
            self._ms = float(np.quantile(self._piled_up_ms(least_ms), _SHARE))
        return self._ms

    def _piled_up_ms(self, least_ms: Callable[[bytes, bool], float]) -> np.ndarray:
        # Work that came up to the k-th arrival, less the time until then: where it has risen
        # highest after an arrival, that much waited.
        came_ms = 1000 * np.array([sent_s for sent_s, _, _ in self._jobs])
        work_ms = np.cumsum([least_ms(key, shrinks) for _, key, shrinks in self._jobs])
        risen_ms = work_ms - came_ms
        highest_ms = np.maximum.accumulate(risen_ms[::-1])[::-1]
        return highest_ms - risen_ms
