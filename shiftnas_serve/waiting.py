"""Waiting: the jobs that a worker has not run yet, and which of them run next.

The subnet whose most urgent job is due first is next; its jobs run together. Nothing waits for a
batch to fill: a batch is what came while the one before it ran.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from shiftnas_serve.frames import Job


@dataclass(order=True, slots=True)
class Waiter:
    """A job and who asked. In the order of deadlines, then of arrival."""

    deadline_s: float
    number: int
    job: Job = field(compare=False)
    client: Hashable = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class Waiting:
    """Jobs by subnet, each subnet's in the order of deadlines."""

    def __init__(self) -> None:
        self._queues: dict[bytes, list[Waiter]] = {}
        self._waiters: dict[tuple[Hashable, int], Waiter] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, client: Hashable, job: Job) -> None:
        """Take a job of ``client``; its id is unique among that client's."""
        self._number += 1
        waiter = Waiter(job.deadline_s, self._number, job, client)
        self._waiters[client, job.id] = waiter
        heapq.heappush(self._queues.setdefault(job.key, []), waiter)

    def cancel(self, client: Hashable, job_id: int) -> None:
        """Forget a job; one that is unknown (it has run) is no error."""
        waiter = self._waiters.pop((client, job_id), None)
        if waiter is not None:
            waiter.cancelled = True

    def forget(self, client: Hashable) -> None:
        """Cancel all jobs of a client that has gone."""
        for asked_by, job_id in list(self._waiters):
            if asked_by == client:
                self.cancel(asked_by, job_id)

    def take(self, now_s: float, fits: Callable[[bytes, float], int]) -> list[Waiter]:
        """The jobs to run next: all of one subnet, the most urgent first; empty when none waits.

        Jobs whose deadline has passed come alone, to be refused. ``fits(key, slack_s)`` says how
        many images of a subnet may run together when the most urgent of all waiting jobs is due in
        ``slack_s``; at least one does.
        """
        heads = []
        for key, queue in list(self._queues.items()):
            while queue and queue[0].cancelled:
                heapq.heappop(queue)
            if queue:
                heads.append((queue[0], key))
            else:
                del self._queues[key]
        if not heads:
            return []
        first, key = min(heads)
        queue = self._queues[key]
        taken: list[Waiter] = []
        late = first.deadline_s < now_s
        most = len(queue) if late else max(fits(key, first.deadline_s - now_s), 1)
        while queue and len(taken) < most:
            if queue[0].cancelled:
                heapq.heappop(queue)
            elif (queue[0].deadline_s < now_s) == late:
                taken.append(heapq.heappop(queue))
            else:
                break
        for waiter in taken:
            del self._waiters[waiter.client, waiter.job.id]
        return taken
