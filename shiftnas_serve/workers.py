"""Workers: the HTTP process's view of the processes that run subnets.

This is where LitServe's request path is replaced: its own handler waits for an answer without end,
also when the worker that had the request is gone. Here a wait ends with the answer, the loss of
the worker, or the deadline. The private parts of LitServe that this touches (the request queue,
the response buffer, START messages) are held by tests/serve/test_litserve_contract.py.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import litserve
from litserve.utils import ResponseBufferItem

from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.problem import Problem
from shiftnas_serve.status import WorkerStatus, is_draining, read_resident, read_worker
from shiftnas_serve.worker import GHOST_S, Done, Failed, Job

POLL_S = 0.1


@dataclass(frozen=True)
class _Wait:
    job: Job
    item: ResponseBufferItem
    lost: asyncio.Event


class Workers:
    """Sends jobs, awaits answers, watches the workers' lives."""

    def __init__(
        self, server: litserve.LitServer, folder: Path, count: int, metrics: Metrics
    ) -> None:
        self._server, self._folder, self._metrics = server, folder, metrics
        self._states: list[WorkerStatus] = [WorkerStatus(False, None, None, {})] * count
        self._waiting: dict[str, _Wait] = {}
        self._latency: LatencyTable | None = None
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether at least one worker takes requests."""
        return any(state.ready for state in self._states)

    @property
    def all_ready(self) -> bool:
        return all(state.ready for state in self._states)

    @property
    def runtime(self) -> dict[str, str]:
        """What really runs the subnets."""
        return next((state.runtime for state in self._states if state.ready), {})

    @property
    def latency(self) -> LatencyTable:
        assert self._latency is not None, "asked before a worker was ready"
        return self._latency

    @property
    def queue_ms(self) -> float:
        """Predicted wait of a new request: what is ahead of it, shared by the workers."""
        if self._latency is None:
            return 0.0
        ahead = len(self._waiting) / max(sum(state.ready for state in self._states), 1)
        return ahead * self._latency.infer_ms(self._latency.points[-1][0])

    def resident(self) -> list[str]:
        """Ids of the subnets that any worker has a session for; reads files."""
        every = [read_resident(self._folder, w) for w in range(len(self._states))]
        return sorted({subnet_id for one in every for subnet_id in one})

    def observed(self, flops: int, infer_ms: float) -> None:
        """Let the latency table follow what answers really took."""
        if self._latency is not None:
            self._latency = self._latency.observed(flops, infer_ms)

    async def run(self, job: Job, deadline_s: float) -> Done | Failed:
        """The worker's answer. Raises Problem: 503 the worker was lost, 504 no time is left."""
        uid = str(uuid.uuid4())
        item = ResponseBufferItem(asyncio.Event())
        lost = asyncio.Event()
        self._server.response_buffer[uid] = item
        self._waiting[uid] = _Wait(job, item, lost)
        tasks = [asyncio.ensure_future(event.wait()) for event in (item.event, lost)]
        try:
            self._send(uid, job)
            left_s = max(deadline_s - time.monotonic(), 0)
            await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if item.event.is_set():
                answer = (item.response or (None,))[0]
                assert isinstance(answer, Done | Failed), answer
                return answer
            if lost.is_set():
                raise Problem(
                    503, "the worker that had this request was lost", headers={"Retry-After": "1"}
                )
            raise Problem(504, "no answer came in time", headers={"Retry-After": "1"})
        finally:
            for task in tasks:
                task.cancel()
            del self._waiting[uid]
            self._server.response_buffer.pop(uid, None)

    def _send(self, uid: str, job: Job) -> None:
        queue = self._server._get_request_queue("/classify")
        queue_id = getattr(self._server.app, "response_queue_id")  # noqa: B009 (set by LitServe)
        queue.put((queue_id, uid, time.monotonic(), job))

    def _send_untaken_again(self) -> None:
        # Should one be in the queue after all, it runs twice, and the second answer is dropped.
        for uid, wait in list(self._waiting.items()):
            if wait.item.worker_id is None and not wait.item.event.is_set():
                self._send(uid, wait.job)

    async def watch(self) -> None:
        """Poll the workers for as long as the process lives."""
        while True:
            await asyncio.to_thread(self._poll)
            await asyncio.sleep(POLL_S)

    def _poll(self) -> None:
        self.draining = is_draining(self._folder)
        for worker_id, before in enumerate(self._states):
            state = read_worker(self._folder, worker_id)
            self._states[worker_id] = state
            if before.pid is not None and state.pid != before.pid:
                self._metrics.worker_losses.inc()
                self._lose(worker_id)
            if state.latency_points and self._latency is None:
                self._latency = LatencyTable.of(state.latency_points)

    def _lose(self, worker_id: int) -> None:
        """End the waits for a worker that died.

        Those that no worker has taken wait for another worker; they are sent again, because the
        dead one may have taken them without saying so. A single worker has no other.
        """
        alone = len(self._states) == 1
        for wait in list(self._waiting.values()):
            taken_by = wait.item.worker_id
            if taken_by == worker_id or (taken_by is None and alone):
                self._loop.call_soon_threadsafe(wait.lost.set)
        self._loop.call_soon_threadsafe(self._loop.call_later, GHOST_S, self._send_untaken_again)

    async def start(self) -> None:
        """Begin to watch; call inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._poll()
        self._task = asyncio.create_task(self.watch(), name="watch-workers")

    async def stop(self) -> None:
        """Stop watching."""
        self._task.cancel()
