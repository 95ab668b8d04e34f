"""Pending: one image, from the door to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from models.images.header import ImageHeader
from models.images.image import Photo
from shiftnas_serve.engine.model import Model
from shiftnas_serve.engine.result import Result
from shiftnas_serve.planning.planner import Plan
from shiftnas_serve.problem import CLIENT_GONE, Problem, late
from shiftnas_serve.scheduling.work import Work


@dataclass(eq=False, slots=True)
class Pending:
    """What is known of it grows on its way; times are on the monotonic clock.

    ``place``: how a problem with it begins, if it is one of several (``place_of``).
    ``asked``: budgets by the name of their kind. ``came_s``: when all of it was here.
    ``deadline_s``: when its answer must be there. ``future``: where its answer goes; ``loop``: the
    event loop that waits for it, None for a thread.

    ``plan``: of when it came, if that was a look-up; else, and with a latency budget anew, of when
    it is prepared. Then ``pixels``: uint8 (height, width, 3), cropped and resized for its subnet
    (``resized``), or a small photo as it was decoded, if another subnet may still look at it.
    ``next_pixels``: of a large photo, for the second subnet of its plan.
    ``aim_s``: when it should be done, if so; None if not. ``least_ms``: what it takes at least.
    ``first``: of a subnet that was not sure, to be answered if the second is not in time.
    """

    model: Model
    asked: Mapping[str, float]
    top_k: int
    came_s: float
    deadline_s: float
    future: asyncio.Future[Result] | Future[Result]
    loop: asyncio.AbstractEventLoop | None = None
    place: str = ""
    data: bytes = b""
    header: ImageHeader | None = None
    photo: Photo | None = None
    work: Work | None = None
    begun_s: float = 0.0
    decode_ms: float = 0.0
    plan: Plan | None = None
    pixels: np.ndarray | None = None
    next_pixels: np.ndarray | None = None
    resized: bool = False
    queued_s: float = 0.0
    aim_s: float | None = None
    least_ms: float = 0.0
    first: Result | None = None
    cancelled: bool = False
    outcome: Result | Problem | None = field(default=None, repr=False)

    def settle(self) -> None:
        """Hand the outcome over; on ``loop``, if there is one."""
        if self.future.done():
            return
        if isinstance(self.outcome, Problem):
            self.future.set_exception(self.outcome)
        else:
            assert self.outcome is not None
            self.future.set_result(self.outcome)


def place_of(number: int, count: int) -> str:
    """What tells an image from the others that came with it."""
    return f"image {number} of {count}: " if count > 1 else ""


Outcome = tuple[Pending, Result | Problem]


def finish(some: Iterable[Outcome]) -> None:
    """Give each its outcome, from any thread: an event loop is woken once for all of its own."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Pending]] = {}
    for one, outcome in some:
        one.outcome = outcome
        if one.loop is None:
            one.settle()
        else:
            by_loop.setdefault(one.loop, []).append(one)
    for loop, settled in by_loop.items():
        with contextlib.suppress(RuntimeError):  # it was closed: nobody waits
            loop.call_soon_threadsafe(_settle, settled)


def _settle(some: list[Pending]) -> None:
    for one in some:
        one.settle()


async def end_wait(one: Pending, last_s: float, gone: Callable[[], Awaitable[None]] | None) -> None:
    """Give an answer that does not come a Problem; or its first, if it waits for a second."""
    try:
        async with asyncio.timeout(max(last_s - time.monotonic(), 0.0)):
            if gone is None:
                await asyncio.Event().wait()
            else:
                await gone()
    except TimeoutError:
        problem = late("no answer came in time")
    else:
        problem = Problem(CLIENT_GONE, "the client went away before its answer was there")
    if one.future.done():
        return
    if problem.status == CLIENT_GONE or one.first is None:
        one.future.set_exception(problem)
    else:
        one.future.set_result(one.first)
