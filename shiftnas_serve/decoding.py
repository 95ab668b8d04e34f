"""Decoding: images whose decoding would hold up the event loop, in threads, by their deadlines.

A decoder cannot be stopped, so it is not begun in vain: whoever waits for a turn leaves with the
client or the deadline, and one whose turn comes too late gives it to the next.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, cast

from models.images.header import ImageHeader
from shiftnas_serve.patience import end_wait
from shiftnas_serve.problem import Problem

T = TypeVar("T")

_THREADS = 2
# What is decoded on the event loop: the way to a thread and back would take longer than the work.
# Of a PNG, each 2 kB may be a chunk of their own.
_SMALL_PIXELS = 250_000
_SMALL_BYTES = {"JPEG": 16_000, "PNG": 64_000}
# A body that is longer than this, in base64, too, holds an image that has to wait its turn.
LARGE_BODY_BYTES = 4 * max(_SMALL_BYTES.values()) // 3
# On a core of a few years ago. What formats and machines make of it is learnt.
_MS_PER_BYTE, _MS_PER_PIXEL = 1e-5, 3e-6
# How fast an estimate follows what is observed, and how far.
_STEP = 0.1
_FACTORS = (0.05, 50.0)


@dataclass(frozen=True)
class Work:
    """Something to do in a thread: ``ms`` is its size, not what it takes here.

    ``kind``: of work that takes alike for its size.
    """

    kind: str
    ms: float


def is_small(header: ImageHeader, size_bytes: int) -> bool:
    """Whether decoding a file with this header takes no more than a moment.

    A WebP may be an animation, whose frames libwebp looks at one by one.
    """
    if header.pixels > _SMALL_PIXELS or header.scans_at:
        return False
    return size_bytes <= _SMALL_BYTES.get(header.format, 0)


def is_large(width: int, height: int) -> bool:
    """Whether resizing so many pixels takes more than a moment."""
    return width * height > _SMALL_PIXELS


def decode_work(header: ImageHeader, size_bytes: int) -> Work:
    """Decoding a file."""
    return Work(header.format, size_bytes * _MS_PER_BYTE + header.pixels * _MS_PER_PIXEL)


def resize_work(width: int, height: int) -> Work:
    """Cropping and resizing so many pixels."""
    return Work("resize", width * height * _MS_PER_PIXEL)


@dataclass(order=True, slots=True)
class _Turn:
    """In the order of deadlines, then of arrival. ``ms``: what it is expected to take."""

    deadline_s: float
    number: int
    ms: float = field(compare=False)
    work: Work = field(compare=False)
    do: Callable[[], object] = field(compare=False)
    answer: asyncio.Future[object] = field(compare=False)
    begun_s: float = field(default=0.0, compare=False)


class Decoding:
    """The queue and its threads. One per revision and HTTP process."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        self._queue: list[_Turn] = []
        self._queue_ms = 0.0
        self._running: list[_Turn] = []
        self._number = 0
        self._factors: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._queue)

    def close(self) -> None:
        """Give the threads back."""
        self._pool.shutdown(wait=False)

    def expected_ms(self, work: Work) -> float:
        """What it takes in a thread, by what such work took."""
        return work.ms * self._factors.get(work.kind, 1.0)

    def wait_ms(self, deadline_s: float) -> float:
        """What one due then waits for its turn at least; 0 where a thread is free."""
        if len(self._running) < _THREADS:
            return 0.0
        if not self._queue or deadline_s >= self._queue[-1].deadline_s:
            ahead_ms = self._queue_ms
        else:
            ahead_ms = sum(one.ms for one in self._queue if one.deadline_s <= deadline_s)
        now = time.monotonic()
        left_ms = sum(max(one.ms - 1000 * (now - one.begun_s), 0.0) for one in self._running)
        return (left_ms + ahead_ms) / _THREADS

    async def run(
        self,
        do: Callable[[], T],
        work: Work,
        deadline_s: float,
        client_gone: Callable[[], Awaitable[None]],
    ) -> T:
        """``do()`` in a thread, when its turn comes.

        Raises what it raises, and Problem: 499 the client went away (``client_gone`` returned); 504
        it was not done by ``deadline_s``, on the monotonic clock.
        """
        loop = asyncio.get_running_loop()
        self._number += 1
        answer: asyncio.Future[object] = loop.create_future()
        turn = _Turn(deadline_s, self._number, self.expected_ms(work), work, do, answer)
        self._add(turn)
        self._begin()
        watch = loop.create_task(end_wait(answer, deadline_s, client_gone))
        try:
            return cast("T", await answer)
        finally:
            watch.cancel()
            if turn in self._queue:
                self._take(turn)

    def _add(self, turn: _Turn) -> None:
        insort(self._queue, turn)
        self._queue_ms += turn.ms

    def _take(self, turn: _Turn) -> None:
        self._queue.remove(turn)
        # without what adding and taking away leaves over
        self._queue_ms = self._queue_ms - turn.ms if self._queue else 0.0

    def _begin(self) -> None:
        """Give every free thread the most urgent turn that is not in vain."""
        while self._queue and len(self._running) < _THREADS:
            turn = self._queue[0]
            self._take(turn)
            if turn.answer.done():
                continue
            # One that would only end too late is done nevertheless if nobody waits behind it: a
            # prediction is no proof.
            turn.begun_s = time.monotonic()
            done_s = turn.begun_s + (turn.ms / 1000 if self._queue else 0.0)
            if done_s >= turn.deadline_s:
                late = "its turn to be decoded came too late"
                turn.answer.set_exception(Problem(504, late, headers={"Retry-After": "1"}))
                continue
            self._running.append(turn)
            done = asyncio.get_running_loop().run_in_executor(self._pool, _timed, turn.do)
            done.add_done_callback(lambda done, turn=turn: self._done(turn, done))

    def _done(self, turn: _Turn, done: asyncio.Future[tuple[object, float]]) -> None:
        self._running.remove(turn)
        error = done.exception()
        if error is None:
            result, took_ms = done.result()
            self._learn(turn.work, took_ms)
            if not turn.answer.done():
                turn.answer.set_result(result)
        elif not turn.answer.done():
            turn.answer.set_exception(error)
        self._begin()

    def _learn(self, work: Work, took_ms: float) -> None:
        low, high = _FACTORS
        seen = min(max(took_ms / max(work.ms, 1e-6), low), high)
        factor = self._factors.get(work.kind)
        # The first is all that is known.
        self._factors[work.kind] = seen if factor is None else factor + _STEP * (seen - factor)


def _timed(do: Callable[[], T]) -> tuple[T, float]:
    begun_s = time.monotonic()
    result = do()
    return result, 1000 * (time.monotonic() - begun_s)
