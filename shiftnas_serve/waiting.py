"""Waiting: the jobs that a worker has not run yet, and which of them run next.

The job that is due first is next, and others of its subnet run with it. Nothing waits for a batch
to fill: a batch is what came while the one before it ran. Jobs with a latency budget shrink, all by
the same measure, so that each of them can be in time.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from shiftnas_serve.arrivals import Arrivals
from shiftnas_serve.frames import Job

# Of the time that is left to the most urgent job, its batch may take this part: what comes
# meanwhile waits for all of it.
_BATCH_SHARE = 0.2


class Costs(Protocol):
    """What ``Waiting`` must know of subnets (``Selection``)."""

    def flops(self, key: bytes) -> int:
        """FLOPs of a subnet."""
        ...

    def cost_ms(self, key: bytes) -> float:
        """What an image of it takes."""
        ...

    def within(self, key: bytes, ms: float, *, alone: bool = False) -> bytes:
        """The largest subnet, up to that of ``key``, that takes at most ``ms``.

        ``alone``: a session may be built for it.
        """
        ...


@dataclass(order=True, slots=True)
class Waiter:
    """A job and who asked. In the order of deadlines, then of arrival."""

    deadline_s: float
    number: int
    job: Job = field(compare=False)
    client: Hashable = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs to run together as the subnet ``key``, or to refuse because they are ``late``."""

    key: bytes
    waiters: list[Waiter]
    late: bool = False


class Waiting:
    """Jobs in the order of their deadlines."""

    def __init__(self) -> None:
        self._queue: list[Waiter] = []
        self._waiters: dict[tuple[Hashable, int], Waiter] = {}
        self._number = 0
        self._arrivals = Arrivals()

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, client: Hashable, job: Job) -> None:
        """Take a job of ``client``; its id is unique among that client's."""
        self._number += 1
        self._arrivals.came(job)
        waiter = Waiter(job.deadline_s, self._number, job, client)
        self._waiters[client, job.id] = waiter
        insort(self._queue, waiter)

    def cancel(self, client: Hashable, job_id: int) -> bool:
        """Forget a job; whether it was there. One that is unknown (it has run) is no error."""
        waiter = self._waiters.pop((client, job_id), None)
        if waiter is not None:
            waiter.cancelled = True
        return waiter is not None

    def others_ms(self, client: Hashable, costs: Costs) -> float:
        """What jobs of other clients with latency budgets take at least."""
        keys = Counter(
            one.job.key
            for one in self._waiters.values()
            if one.client != client and one.job.aim_s is not None
        )
        return sum(count * _least_ms(costs, key, shrinks=True) for key, count in keys.items())

    def forget(self, client: Hashable) -> None:
        """Cancel all jobs of a client that has gone."""
        for asked_by, job_id in list(self._waiters):
            if asked_by == client:
                self.cancel(asked_by, job_id)

    def take(self, now_s: float, costs: Costs, max_batch: int) -> Group | None:
        """What to do next; None when nothing waits. Late jobs come first, and alone."""
        if len(self._queue) > len(self._waiters):
            self._queue = [waiter for waiter in self._queue if not waiter.cancelled]
        if not self._queue:
            return None
        late = self._late(now_s, costs)
        if late:
            return self._taken(Group(b"", self._queue[:late], late=True))
        first = self._queue[0].job
        key, shrinks = first.key, first.aim_s is not None
        if shrinks:
            key = costs.within(key, self._share_ms(now_s, costs), alone=len(self._queue) == 1)
        flops = costs.flops(key)
        slack_ms = 1000 * (first.deadline_s - now_s)
        most = max(min(int(_BATCH_SHARE * slack_ms / costs.cost_ms(key)), max_batch), 1)
        together: list[Waiter] = []
        for waiter in self._queue:
            job = waiter.job
            may_shrink = shrinks and job.aim_s is not None and costs.flops(job.key) >= flops
            if job.key == key or may_shrink:
                together.append(waiter)
                if len(together) == most:
                    break
        return self._taken(Group(key, together))

    def _late(self, now_s: float, costs: Costs) -> int:
        """How many of the most urgent jobs cannot be in time.

        One that would only end too late is run nevertheless if nobody waits behind it: the time is
        there, its client may still take the answer, and a prediction is no proof.
        """
        for place, waiter in enumerate(self._queue):
            least_ms = 0.0
            if place < len(self._queue) - 1:
                least_ms = _least_ms(costs, waiter.job.key, waiter.job.aim_s is not None)
            if waiter.deadline_s >= now_s + least_ms / 1000:
                return place
        return len(self._queue)

    def _share_ms(self, now_s: float, costs: Costs) -> float:
        """What each job that shrinks may take so that all of them can be in time.

        What runs before a job counts twice. Under load every job uses up the time that it is given,
        so all would else be due just at their deadlines, and half of them late. What usually comes
        after a job has its time kept, too, and no job gets more than the pace at which they come.
        """
        kept_ms = self._arrivals.reserve_ms(now_s, partial(_least_ms, costs, shrinks=True))
        share_ms = self._arrivals.pace_ms(now_s, costs.cost_ms)
        ahead_ms, shrinking = 0.0, 0
        for waiter in self._queue:
            job = waiter.job
            if job.aim_s is None:
                ahead_ms += costs.cost_ms(job.key)
                continue
            left_ms = 1000 * (job.aim_s - now_s) - kept_ms - 2 * ahead_ms
            share_ms = min(share_ms, left_ms / (2 * shrinking + 1))
            shrinking += 1
        return share_ms

    def _taken(self, group: Group) -> Group:
        for waiter in group.waiters:
            waiter.cancelled = True
            del self._waiters[waiter.client, waiter.job.id]
        return group


def _least_ms(costs: Costs, key: bytes, shrinks: bool) -> float:
    """What a job takes at least."""
    return costs.cost_ms(costs.within(key, 0.0) if shrinks else key)
