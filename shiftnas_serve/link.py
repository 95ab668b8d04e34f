"""Link: the HTTP process's connection to one worker, and the jobs in flight there."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from shiftnas_serve.frames import (
    Alive,
    Building,
    Cancel,
    Done,
    Failed,
    FrameReader,
    Hello,
    Job,
    Late,
    Open,
    Refused,
    Resident,
    pack,
)

# Between two attempts to connect to a worker that is starting.
_RETRY_S = 0.03
# A TensorRT engine can take minutes to build.
_BUILD_STALL_S = 900.0

Answer = Done | Late | Failed


@dataclass(eq=False, slots=True)
class Flight:
    """A job on its way.

    ``infer_ms``: what it is predicted to take; ``least_ms``: if it shrinks as far as it may;
    ``retried``: sent twice.
    """

    job: Job
    subnet_id: str
    infer_ms: float
    least_ms: float
    answer: asyncio.Future[Answer]
    link: Link | None = None
    retried: bool = False


class Flights:
    """The flights of a connection by the ids of their jobs, and the work that they are."""

    def __init__(self) -> None:
        self._by_id: dict[int, Flight] = {}
        self._ms = self._least_ms = 0.0
        self._last_deadline_s = -math.inf

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, flight: Flight) -> None:
        """Take a flight."""
        if not self._by_id:  # without what adding and taking away leaves over
            self._ms, self._least_ms, self._last_deadline_s = 0.0, 0.0, -math.inf
        self._by_id[flight.job.id] = flight
        self._ms += flight.infer_ms
        self._least_ms += flight.least_ms
        self._last_deadline_s = max(self._last_deadline_s, flight.job.deadline_s)

    def pop(self, job_id: int) -> Flight | None:
        """Give up a flight; None where it is not here any more."""
        flight = self._by_id.pop(job_id, None)
        if flight is not None:
            self._ms -= flight.infer_ms
            self._least_ms -= flight.least_ms
        return flight

    def pop_all(self) -> list[Flight]:
        """Give up all."""
        flights = list(self._by_id.values())
        self._by_id.clear()
        return flights

    def ahead_ms(self, deadline_s: float) -> tuple[float, float]:
        """Predicted work of the jobs that run before one due at ``deadline_s``.

        As they are, and if every job shrinks as far as it may. Usually that is all of them, and
        nothing need be added up.
        """
        if not self._by_id:
            return 0.0, 0.0
        if deadline_s >= self._last_deadline_s:
            return self._ms, self._least_ms
        ahead = [one for one in self._by_id.values() if one.job.deadline_s <= deadline_s]
        return sum(one.infer_ms for one in ahead), sum(one.least_ms for one in ahead)


class Link(asyncio.Protocol):
    """One connection, for jobs of one revision.

    ``hello`` is None until the worker said that it has the revision, ``refused`` why it never will;
    ``closed`` is done when the connection is gone.
    """

    def __init__(self, revision: int, on_hello: Callable[[Hello], None]) -> None:
        self.hello: Hello | None = None
        self.refused: str | None = None
        self._revision = revision
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.in_flight = Flights()
        self.resident: set[str] = set()
        self._on_hello = on_hello
        self._reader = FrameReader()
        self._heard_s = time.monotonic()
        self._building = False
        self._outgoing: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    @property
    def ready(self) -> bool:
        return self.hello is not None and not self.closed.done()

    def send(self, flight: Flight) -> None:
        """Send a flight's job and keep the flight until it is answered, cancelled or lost."""
        if not self.in_flight:
            self._heard_s = time.monotonic()
        flight.link = self
        self.in_flight.add(flight)
        self._write(flight.job)

    def cancel(self, flight: Flight) -> None:
        """Forget a flight; nothing happens if it has landed."""
        if self.in_flight.pop(flight.job.id) is not None and not self.closed.done():
            self._write(Cancel(flight.job.id))

    def _write(self, frame: Job | Cancel) -> None:
        # Once a turn of the event loop, so that requests that came together arrive together. On a
        # busy core the worker would else be woken for each, and run each alone.
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(pack(frame))

    def _flush(self) -> None:
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        if self._transport is not None and not self.closed.done():
            self._transport.write(data)

    def stalled(self, stall_s: float) -> bool:
        """Whether the worker owes answers and has not been heard of for too long."""
        limit_s = _BUILD_STALL_S if self._building else stall_s
        return bool(self.in_flight) and time.monotonic() - self._heard_s > limit_s

    def kill(self) -> None:
        """End a worker that does not answer; LitServe starts another."""
        if self.hello is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.hello.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Close the connection; the worker drops what it has for us."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, and do all that those do.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(pack(Open(self._revision)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._heard_s = time.monotonic()
        self._building = False
        for frame in self._reader.feed(data):
            match frame:
                case Done() | Late() | Failed():
                    flight = self.in_flight.pop(frame.id)
                    if flight is not None and not flight.answer.done():
                        flight.answer.set_result(frame)
                case Building():
                    self._building = True
                case Alive():
                    pass  # heard of, which is all
                case Refused(reason):
                    self.refused = reason
                case Resident(added, removed):
                    self.resident.difference_update(removed)
                    self.resident.update(added)
                case Hello():
                    self.hello = frame
                    self._on_hello(frame)
                case _:
                    raise AssertionError(frame)


async def connect(path: Path, revision: int, on_hello: Callable[[Hello], None]) -> Link:
    """A connection to the worker that listens at ``path``; waits for as long as none does."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, link = await loop.create_unix_connection(lambda: Link(revision, on_hello), str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(_RETRY_S)
        else:
            return link
