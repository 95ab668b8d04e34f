"""Backlog: the images that wait, to be decoded or to run, and how long that takes.

The one estimate of the queue is here: whoever asks whether there is time for one more asks
``refuse_if_hopeless``.
"""

from __future__ import annotations

import math
import time
from bisect import insort
from collections.abc import Callable, Collection
from threading import Condition, RLock

from shiftnas_serve.latency import MARGIN
from shiftnas_serve.problem import Problem, busy, late
from shiftnas_serve.scheduling.pace import Pace
from shiftnas_serve.scheduling.pending import Pending, finish
from shiftnas_serve.scheduling.turns import Group, next_group
from shiftnas_serve.scheduling.work import WorkFactors


class Line:
    """Images by deadline, then by arrival, each with the milliseconds that it is expected to take.

    ``under_way``: those whose turn has come, by thread: until when they are expected to take.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._rows: list[tuple[float, int, float, Pending]] = []
        self._count = 0
        self._ms = 0.0
        self.under_way: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, one: Pending, ms: float) -> None:
        self._count += 1
        self._ms += ms
        insort(self._rows, (one.deadline_s, self._count, ms, one))

    def images(self) -> list[Pending]:
        return [row[3] for row in self._rows]

    def remove(self, some: Collection[Pending]) -> None:
        gone = set(some)
        self._rows = [row for row in self._rows if row[3] not in gone]
        # added up anew: without what adding and taking away leaves over
        self._ms = sum([row[2] for row in self._rows])

    def pop(self) -> tuple[Pending, float]:
        """The most urgent, and what it is expected to take."""
        _, _, ms, one = self._rows.pop(0)
        self._ms = self._ms - ms if self._rows else 0.0
        return one, ms

    def wait_ms(self, deadline_s: float, now_s: float) -> float:
        """What one due then waits for its turn at least; 0 where a thread is free."""
        if len(self.under_way) < self.threads and not self._rows:
            return 0.0
        if not self._rows or deadline_s >= self._rows[-1][0]:
            ahead_ms = self._ms
        else:
            ahead_ms = sum(row[2] for row in self._rows if row[0] <= deadline_s)
        for end_s in self.under_way.values():
            if end_s > now_s:
                ahead_ms += 1000 * (end_s - now_s)
        return ahead_ms / self.threads


class Backlog:
    """Two lines, with a number of threads each: ``decoders`` and ``runners``. Thread-safe."""

    def __init__(self, decoders: int, runners: int, max_batch: int) -> None:
        self._max_batch = max_batch
        self._lock = RLock()
        self._to_decode, self._to_run = Line(decoders), Line(runners)
        self._decoder_free, self._runner_free = Condition(self._lock), Condition(self._lock)
        self._pace = Pace()
        self.work = WorkFactors()
        self.arriving = 0
        """Images that are here, will need no turn to be decoded, and do not wait yet."""
        self._cancelled = 0
        self._closed = False
        self._last_s = time.monotonic()

    def close(self) -> None:
        """All threads are told that there is no more, and who waits that there is no answer."""
        with self._lock:
            self._closed = True
            waiting = [*self._to_decode.images(), *self._to_run.images()]
            for line in (self._to_decode, self._to_run):
                line.remove(waiting)
            self._decoder_free.notify_all()
            self._runner_free.notify_all()
        finish((one, one.first or _closed()) for one in waiting if not one.cancelled)

    def __len__(self) -> int:
        return len(self._to_decode) + len(self._to_run)

    def refuse_if_hopeless(
        self, deadline_s: float, smallest_ms: float, *, decode_ms: float | None = None
    ) -> None:
        """Problem 429 when so much waits that even the smallest subnet would be late; 504 if it is.

        ``smallest_ms``: what it takes. ``decode_ms``: what decoding takes in a thread, when its
        turn comes; None if it needs none.
        """
        now = time.monotonic()
        with self._lock:
            wait_ms = self._to_run.wait_ms(deadline_s, now)
            wait_ms += self.arriving * smallest_ms / self._to_run.threads
            ready_ms = wait_ms
            if decode_ms is not None:  # subnets run meanwhile
                turn_ms = self._to_decode.wait_ms(deadline_s, now)
                ready_ms = max(wait_ms, turn_ms + decode_ms)
                wait_ms = max(wait_ms, turn_ms)
        if wait_ms and now + MARGIN * (ready_ms + smallest_ms) / 1000 > deadline_s:
            raise busy(
                f"what waits takes {wait_ms:.0f} ms at least; no subnet would answer in time",
                math.ceil(wait_ms / 1000),
            )
        if now >= deadline_s:
            raise late("its time was over before its turn came")

    def decode(self, one: Pending) -> None:
        """Let it wait for a thread that decodes it. Raises Problem where that is in vain."""
        assert one.work is not None
        planner, ms = one.model.planner, self.work.expected_ms(one.work)
        smallest_ms = planner.cost_ms(planner.smallest)
        self.refuse_if_hopeless(one.deadline_s, smallest_ms, decode_ms=ms)
        with self._lock:
            if self._closed:
                raise _closed()
            self._last_s = time.monotonic()
            self._to_decode.add(one, ms)
            self._decoder_free.notify()

    def run(self, one: Pending, *, wake: bool = True) -> None:
        """Let it wait for its turn to run. Raises Problem where that is in vain.

        ``wake``: a thread is told so at once; else ``wake_one`` must be called soon.
        """
        assert one.plan is not None
        planner = one.model.planner
        one.least_ms = planner.least_ms(one.plan)
        self.refuse_if_hopeless(one.deadline_s, planner.cost_ms(planner.smallest))
        one.queued_s = time.monotonic()
        with self._lock:
            if self._closed:
                raise _closed()
            self._last_s = one.queued_s
            self._pace.came(one.queued_s, None if one.plan.shrinks else one.least_ms)
            self._to_run.add(one, one.least_ms)
            if wake:
                self.wake_one()

    def go_on(self, one: Pending) -> bool:
        """Let it wait for its second subnet; false where that would be late."""
        assert one.plan is not None
        planner, now = one.model.planner, time.monotonic()
        one.least_ms = planner.cost_ms(one.plan.subnet)
        with self._lock:
            wait_ms = self._to_run.wait_ms(one.deadline_s, now)
            too_late = now + (MARGIN * wait_ms + planner.next_ms(one.plan)) / 1000 > one.deadline_s
            if too_late or self._closed:
                return False
            self._to_run.add(one, one.least_ms)
            self._runner_free.notify()
        return True

    def cancel(self, one: Pending) -> None:
        """Nobody waits for it any more. What runs already ends nevertheless."""
        with self._lock:
            one.cancelled = True
            self._cancelled += 1
            if self._to_decode:
                self._to_decode.remove([one])

    def next_to_decode(self, thread: int) -> Pending | None:
        """The most urgent image, when there is one; None at the end. By thread number ``thread``.

        A decoder cannot be stopped, so it is not begun in vain.
        """
        while True:
            with self._lock:
                self._to_decode.under_way.pop(thread, None)
                while not self._to_decode and not self._closed:
                    self._decoder_free.wait()
                if self._closed:
                    return None
                one, ms = self._to_decode.pop()
                now = time.monotonic()
                # One that would only end too late is done nevertheless if nobody waits behind it:
                # a prediction is not a proof.
                done_s = now + (ms / 1000 if self._to_decode else 0.0)
                if not one.cancelled and done_s < one.deadline_s:
                    self._to_decode.under_way[thread] = now + ms / 1000
                    return one
            if not one.cancelled:
                finish([(one, late("its turn to be decoded came too late"))])

    def quiet_s(self) -> float:
        """Since when nobody has waited for anything; 0 while somebody does."""
        with self._lock:
            if len(self) or self._to_decode.under_way or self._to_run.under_way:
                return 0.0
            return time.monotonic() - self._last_s

    def building(self, thread: int, ms: float) -> bool:
        """Thread ``thread`` builds what nobody waits for, which takes so long; false: not now."""
        with self._lock:
            if self._to_run or self._closed:
                return False
            self._to_run.under_way[thread] = time.monotonic() + ms / 1000
            return True

    def built(self, thread: int) -> None:
        """The build is over."""
        with self._lock:
            self._to_run.under_way.pop(thread, None)

    def next_group(self, thread: int, patience_s: Callable[[], float]) -> Group | None:
        """What to run next; None at the end, and where nothing came while there was patience."""
        with self._lock:
            if self._to_run.under_way.pop(thread, None) is not None:
                self._last_s = time.monotonic()
            while True:
                if self._cancelled:
                    self._to_run.remove([o for o in self._to_run.images() if o.cancelled])
                    self._cancelled = 0
                if self._closed or self._to_run or (left_s := patience_s()) <= 0:
                    break
                self._runner_free.wait(None if math.isinf(left_s) else left_s)
            if self._closed or not self._to_run:
                return None
            now, threads = time.monotonic(), self._to_run.threads
            waiting = self._to_run.images()
            group = next_group(waiting, now, self._pace, self._max_batch, threads)
            self._to_run.remove(group.images)
            if group.subnet is not None:
                planner = group.images[0].model.planner
                takes_ms = planner.cost_ms(group.subnet) * len(group.images)
                takes_ms += planner.build_ms(group.subnet.value)
                self._to_run.under_way[thread] = now + takes_ms / 1000
            if self._to_run:
                self._runner_free.notify()  # for another thread
            return group

    def wake_one(self) -> None:
        """Let a thread take what waits to run, if one is free."""
        with self._lock:
            self._runner_free.notify()

    def wake(self) -> None:
        """Let all threads that wait for something to run ask again (``patience_s``)."""
        with self._lock:
            self._runner_free.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the end has come."""
        return self._closed


def _closed() -> Problem:
    return Problem(503, "the engine is closed; ask another")
