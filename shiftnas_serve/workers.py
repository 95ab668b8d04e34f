"""Workers: the HTTP process's view of the processes that run subnets.

A job goes to the worker that is predicted to answer first. The wait for it ends with the answer, a
lost worker, a client that has gone, or lost time. A worker that is lost closes its connection, so
that is noticed at once: what was in flight there runs once more elsewhere, since inference changes
nothing, or is refused.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import structlog

from shiftnas_serve.frames import Done, Hello, Job, Unbuilt
from shiftnas_serve.inbox import socket_path
from shiftnas_serve.latency import FIRST_BUILD_MS, LatencyTable
from shiftnas_serve.link import LOOK_S, Answer, Flight, Link, connect
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.patience import end_wait
from shiftnas_serve.problem import Problem
from shiftnas_serve.run_folder import RunFolder
from shiftnas_serve.status import is_draining

# Before a worker that could not load a revision is asked again.
_RETRY_S = 1.0
# One may be lost while it loads for reasons of its own.
_LOST_LOADING = 3
# Most answers are there by then, and cost no watch over the client's connection: a task, which is
# as much work as a tenth of a small subnet's answer.
_WATCH_CLIENT_AFTER_S = 0.1
# How fast an estimate follows what is observed.
_STEP = 0.1

_LOG = structlog.get_logger("shiftnas_serve.workers")


class Workers:
    """Sends jobs, awaits answers, watches the workers' lives.

    One per revision and HTTP process, with connections of its own.
    """

    def __init__(
        self, folder: Path, revision: int, count: int, metrics: Metrics, stall_s: float
    ) -> None:
        self._folder, self._metrics, self._stall_s = folder, metrics, stall_s
        self._revision = revision
        self._lost_loading = 0
        self.failure: str | None = None
        """Why a worker cannot have this revision."""
        self._links: list[Link | None] = [None] * count
        self._latency: LatencyTable | None = None
        self._build_ms = FIRST_BUILD_MS
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether at least one worker takes requests."""
        return bool(self._ready_links())

    @property
    def all_ready(self) -> bool:
        return all(link is not None and link.ready for link in self._links)

    @property
    def runtime(self) -> dict[str, str]:
        """What really runs the subnets."""
        return next((link.hello.runtime for link in self._ready_links() if link.hello), {})

    @property
    def latency(self) -> LatencyTable:
        assert self._latency is not None, "asked before a worker was ready"
        return self._latency

    def least_wait_ms(self, deadline_s: float) -> float:
        """What a job due then waits at least: what runs before it on the least busy worker."""
        return min([one.ahead_ms(deadline_s)[1] for one in self._ready_links()], default=0.0)

    def resident(self) -> list[str]:
        """Ids of the subnets that any worker has a session for."""
        return sorted(set().union(*(link.resident for link in self._ready_links())))

    def observed(self, flops: int, infer_ms: float, overhead_ms: float) -> None:
        """Let the latency table follow what answers really took, in the worker and beside it."""
        if self._latency is not None:
            self._latency = self._latency.observed(flops, infer_ms, overhead_ms)

    async def run(
        self,
        *,
        key: bytes,
        subnet_id: str,
        flops: int,
        least_flops: int,
        pixels: np.ndarray,
        prepared: bool,
        deadline_s: float,
        aim_s: float | None,
        give_up_s: float,
        client_gone: Callable[[], Awaitable[None]],
    ) -> Answer:
        """The worker's answer.

        ``pixels``, ``prepared``: as in a ``Job``.
        ``aim_s``: the worker may choose a smaller subnet, of at least ``least_flops``, to be done
        by then. ``client_gone`` returns when nobody waits any more. Times are on the monotonic
        clock.

        Raises Problem: 499 the client went away; 500 two workers that had it were lost; 503 there
        is no worker, or no other; 504 no answer by ``give_up_s``.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        infer_ms = self.latency.infer_ms(flops)
        flight = Flight(
            Job(next(self._ids), key, pixels, now, deadline_s, aim_s, prepared),
            subnet_id,
            infer_ms,
            infer_ms if least_flops == flops else self.latency.infer_ms(least_flops),
            loop.create_future(),
        )
        self._dispatch(flight)
        watch: asyncio.Task[None] | None = None

        def begin_watch() -> None:
            nonlocal watch
            watch = loop.create_task(end_wait(flight.answer, give_up_s, client_gone))

        soon = min(_WATCH_CLIENT_AFTER_S, max(give_up_s - now, 0.0))
        timer = loop.call_later(soon, begin_watch)
        try:
            answer = await flight.answer
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()
            if flight.link is not None:
                flight.link.cancel(flight)
        if isinstance(answer, Done) and answer.build_ms:
            self._build_ms += _STEP * (answer.build_ms - self._build_ms)
        return answer

    async def start(self) -> None:
        """Connect, and begin to watch; call inside the event loop."""
        for worker_id in range(len(self._links)):
            self._tasks.append(asyncio.create_task(self._keep_link(worker_id)))
        self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            if link is not None:
                link.close()

    def _ready_links(self) -> list[Link]:
        return [link for link in self._links if link is not None and link.ready]

    def _dispatch(self, flight: Flight) -> None:
        """Send a flight to the worker that will probably answer first."""

        def expected_ms(link: Link) -> float:
            build_ms = 0.0 if flight.subnet_id in link.resident else self._build_ms
            return link.ahead_ms(flight.job.deadline_s)[0] + build_ms

        links = self._ready_links()
        if not links:
            raise Problem(503, "no worker is ready", headers={"Retry-After": "1"})
        link = links[0] if len(links) == 1 else min(links, key=expected_ms)
        link.send(flight)

    async def _keep_link(self, worker_id: int) -> None:
        """Connect to a worker, and to its replacement when it is gone."""
        while True:
            try:
                await self._hold_link(worker_id)
            # A worker without a connection would be lost for good.
            except Exception:  # noqa: BLE001
                _LOG.exception("a connection to a worker failed", worker=worker_id)
                await asyncio.sleep(_RETRY_S)

    async def _hold_link(self, worker_id: int) -> None:
        """From connecting to a worker until it is gone."""
        link = await connect(socket_path(self._folder, worker_id), self._revision, self._heard)
        self._links[worker_id] = link
        await link.closed
        self._redirect(link)
        if link.hello is not None:
            return
        self._lost_loading += 1
        if link.refused is not None:
            self.failure = link.refused
        elif self._lost_loading >= _LOST_LOADING:
            self.failure = f"workers were lost {self._lost_loading} times while they loaded it"
        await asyncio.sleep(_RETRY_S)

    def _heard(self, frame: Hello | Unbuilt) -> None:
        if isinstance(frame, Unbuilt):
            self._metrics.prebuild_failures.inc()
        elif self._latency is None:
            self._latency = LatencyTable.of(frame.latency_points)

    def _redirect(self, lost: Link) -> None:
        """Run what a lost worker had once more on another; what was lost twice is refused.

        Whoever had a job when it was lost may have been lost because of it. So after the second
        that is the server's error (500): a balancer sends what was 503 to another replica, which
        would lose its workers, too.
        """
        for flight in lost.in_flight.pop_all():
            if flight.answer.done():
                continue
            suspect = lost.has_written(flight)
            if flight.retried and suspect:
                detail = "two workers that had this request were lost; it is not tried again"
                flight.answer.set_exception(Problem(500, detail))
            elif not self.ready:
                detail = "the worker that had this request was lost"
                flight.answer.set_exception(Problem(503, detail, headers={"Retry-After": "1"}))
            else:
                flight.retried |= suspect
                self._metrics.retries.inc()
                self._dispatch(flight)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._look()
            # Whatever it was (a full disk), the next look may go well.
            except Exception:  # noqa: BLE001
                _LOG.exception("cannot watch the workers")

    def _look(self) -> None:
        self.draining = is_draining(self._folder)
        stalled = [link for link in self._ready_links() if link.stalls(self._stall_s)]
        for link in stalled:
            link.kill()
        for link in stalled:
            assert link.hello is not None
            _LOG.error("a worker stands still; ending it", pid=link.hello.pid)
            if RunFolder(self._folder).once(f"stalled-{link.hello.pid}"):
                self._metrics.worker_stalls.inc()
