"""Patience: for how long somebody waits for something that an HTTP process has others do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from shiftnas_serve.problem import CLIENT_GONE, Problem


async def end_wait(
    answer: asyncio.Future[Any], give_up_s: float, client_gone: Callable[[], Awaitable[None]]
) -> None:
    """Give an answer that does not come a Problem: 499 its client has gone, 504 time is over.

    ``client_gone`` returns when nobody waits any more; ``give_up_s`` is on the monotonic clock.
    """
    try:
        async with asyncio.timeout(max(give_up_s - time.monotonic(), 0.0)):
            await client_gone()
    except TimeoutError:
        problem = Problem(504, "no answer came in time", headers={"Retry-After": "1"})
    else:
        problem = Problem(CLIENT_GONE, "the client went away before its answer was there")
    if not answer.done():
        answer.set_exception(problem)
