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

import structlog

from shiftnas_serve.frames import (
    Alive,
    Building,
    Cancel,
    Done,
    Dropped,
    Failed,
    FrameReader,
    Hello,
    Job,
    Late,
    Open,
    Others,
    Refused,
    Resident,
    Unbuilt,
    pack,
)

LOOK_S = 0.25
"""Between two looks at whether a worker has stalled."""

# Between two attempts to connect to a worker that is starting.
_RETRY_S = 0.03
# After an error that time may mend, such as too many open files.
_ERROR_RETRY_S = 1.0
# Jobs are handed to the transport in pieces of about this size: what it takes beyond that stays in
# its buffer, with all its pixels, also when nobody waits for it any more.
_PIECE_BYTES = 1 << 16

_LOG = structlog.get_logger("shiftnas_serve.link")

Answer = Done | Late | Failed


@dataclass(eq=False, slots=True)
class Flight:
    """A job on its way.

    ``infer_ms``: what it is predicted to take; ``least_ms``: if it shrinks as far as it may;
    ``retried``: a worker that had it was lost.
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
    ``closed`` is done when the connection is gone. ``tell`` gets what concerns more than this
    connection.

    A job is packed and written when the worker takes it, so that what waits here while the worker
    is busy is not held twice, and what is cancelled meanwhile is never written. The worker owes one
    frame for each job that was written, also for one that was cancelled after that: one that works
    is heard of, whatever its clients do.
    """

    def __init__(self, revision: int, tell: Callable[[Hello | Unbuilt], None]) -> None:
        self.hello: Hello | None = None
        self.ready = False
        """Whether jobs may be sent."""
        self.refused: str | None = None
        self._revision = revision
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.in_flight = Flights()
        self.resident: set[str] = set()
        self._tell = tell
        self._reader = FrameReader()
        self._unsent: dict[int, Job] = {}
        self._cancels: list[int] = []
        self._owed: set[int] = set()
        self._others_done_s = -math.inf  # when the worker will have run what others have sent it
        self._silent_looks = 0
        self._build_limit_s = 0.0
        self._paused = self._flushing = False
        self._transport: asyncio.WriteTransport | None = None

    def send(self, flight: Flight) -> None:
        """Send a flight's job and keep the flight until it is answered, cancelled or lost."""
        flight.link = self
        self.in_flight.add(flight)
        self._unsent[flight.job.id] = flight.job
        self._flush_soon()

    def has_written(self, flight: Flight) -> bool:
        """Whether the worker may have begun with a flight's job."""
        return flight.job.id not in self._unsent

    def cancel(self, flight: Flight) -> None:
        """Forget a flight; nothing happens if it has landed."""
        job_id = flight.job.id
        if self.in_flight.pop(job_id) is None or self._unsent.pop(job_id, None) is not None:
            return
        self._cancels.append(job_id)
        self._flush_soon()

    def ahead_ms(self, deadline_s: float) -> tuple[float, float]:
        """As ``Flights.ahead_ms``, and what other HTTP processes had waiting when last heard of."""
        ms, least_ms = self.in_flight.ahead_ms(deadline_s)
        others_ms = max(1000 * (self._others_done_s - time.monotonic()), 0.0)
        return ms + others_ms, least_ms + others_ms

    def _flush_soon(self) -> None:
        # Once a turn of the event loop, so that requests that came together arrive together. On a
        # busy core the worker would else be woken for each, and run each alone.
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self.closed.done():
            return
        while (self._cancels or self._unsent) and not self._paused:
            frames = [pack(Cancel(job_id)) for job_id in self._cancels]
            self._cancels.clear()
            size_bytes = 0
            while self._unsent and size_bytes < _PIECE_BYTES:
                job_id = next(iter(self._unsent))
                frames.append(pack(self._unsent.pop(job_id)))
                self._owed.add(job_id)
                size_bytes += len(frames[-1])
            self._transport.write(b"".join(frames))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def stalls(self, stall_s: float) -> bool:
        """Look, every ``LOOK_S``: has the worker owed something for so long, and said nothing?

        Looks are counted, not seconds: a worker that was frozen together with this process, as when
        a machine sleeps, is not to blame.
        """
        self._silent_looks = self._silent_looks + 1 if self._owed or self._unsent else 0
        return self._silent_looks * LOOK_S > max(stall_s, self._build_limit_s)

    def kill(self) -> None:
        """End a worker that does not answer; LitServe starts another."""
        if self.hello is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.hello.pid, signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()  # nobody takes what is in its buffer

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
        self.ready = False
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._silent_looks = 0
        for frame in self._reader.feed(data):
            self._build_limit_s = frame.limit_s if isinstance(frame, Building) else 0.0
            match frame:
                case Done() | Late() | Failed() | Dropped():
                    self._owed.discard(frame.id)
                    flight = self.in_flight.pop(frame.id)
                    if flight is not None and not flight.answer.done():
                        assert not isinstance(frame, Dropped), "nobody has cancelled it"
                        flight.answer.set_result(frame)
                case Others(least_ms):
                    self._others_done_s = time.monotonic() + least_ms / 1000
                case Building() | Alive():
                    pass  # heard of, which is all
                case Refused(reason):
                    self.refused = reason
                case Resident(added, removed):
                    self.resident.difference_update(removed)
                    self.resident.update(added)
                case Hello():
                    self.hello, self.ready = frame, True
                    self._tell(frame)
                case Unbuilt():
                    self._tell(frame)
                case _:
                    raise AssertionError(frame)


async def connect(path: Path, revision: int, tell: Callable[[Hello | Unbuilt], None]) -> Link:
    """A connection to the worker that listens at ``path``; waits for as long as none does."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, link = await loop.create_unix_connection(lambda: Link(revision, tell), str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(_RETRY_S)
        except OSError as error:
            _LOG.error("cannot connect to a worker", error=str(error))
            await asyncio.sleep(_ERROR_RETRY_S)
        else:
            return link
