"""Admission: who may ask, how often, and whether there is time to answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from starlette.requests import Request

from shiftnas_serve.body import BodyRoom, BodyShare
from shiftnas_serve.decoding import Decoding
from shiftnas_serve.keys import ApiKeys
from shiftnas_serve.latency import MARGIN
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.problem import CLIENT_GONE, Problem
from shiftnas_serve.rate_limit import RateLimit
from shiftnas_serve.request_context import headers_of
from shiftnas_serve.settings import Settings
from shiftnas_serve.workers import Workers


class Admission:
    """What a request passes at the door. One per revision and HTTP process.

    ``min_flops``: of the smallest subnet.
    """

    def __init__(
        self,
        workers: Workers,
        metrics: Metrics,
        settings: Settings,
        folder: Path,
        min_flops: int,
        decoding: Decoding,
    ) -> None:
        self._workers, self._metrics, self._settings = workers, metrics, settings
        self._decoding = decoding
        self._min_flops = min_flops
        self.keys = ApiKeys([key.get_secret_value() for key in settings.api_keys])
        self._rate: RateLimit | None = None
        if settings.rate_per_s is not None:
            path = folder / "rate-limit"
            rate, burst = settings.rate_per_s, settings.rate_burst
            self._rate = RateLimit(path, len(self.keys), rate, burst)
        self._in_flight = self._preparing = 0  # images
        self._room = BodyRoom(settings.max_waiting_bytes)

    @property
    def alone(self) -> bool:
        """Whether nobody asks but one."""
        return self._in_flight <= 1

    def close(self) -> None:
        """Give files back."""
        if self._rate is not None:
            self._rate.close()

    def admitted(self, request: Request) -> Visit:
        """Count a request while it is here, and its status when it goes. Its body needs the share.

        Entering raises Problem: 401 no key, 429 too many requests, 503 nobody to answer them.
        """
        return Visit(self, request, self._room)

    def enter(self, request: Request) -> None:
        """See ``admitted``."""
        self._in_flight += 1
        self._metrics.in_flight.inc()
        try:
            self._admit(request)
        except BaseException as error:
            self.leave(error)
            raise

    def leave(self, error: BaseException | None) -> None:
        """A request goes, with what it ended in."""
        self._in_flight -= 1
        self._metrics.in_flight.inc(-1)
        self._metrics.answered(_status(error))

    def _admit(self, request: Request) -> None:
        settings = self._settings
        self.charge(request, 1)
        if self._in_flight > settings.max_waiting:
            raise Problem(
                429,
                f"{settings.max_waiting} images are being worked on already; try again",
                headers={"Retry-After": "1"},
            )
        if not self._workers.ready:
            raise Problem(503, "the server is not ready yet", headers={"Retry-After": "1"})

    @contextmanager
    def admitted_images(self, request: Request, images: int) -> Iterator[None]:
        """Count a request as so many while they are worked on: at the door it was one.

        Raises Problem: 400 more than are ever let in at once, 429 more than are now.
        """
        most, further = self._settings.max_waiting, images - 1
        if self._rate is not None:
            most = min(most, self._rate.burst)
        if images > most:
            raise Problem(400, f"{images} images at once; send {most} or fewer in a request")
        if self._in_flight + further > self._settings.max_waiting:
            raise Problem(
                429,
                f"{self._in_flight - 1} images are being worked on already, there is no room for "
                f"{images}; try again",
                headers={"Retry-After": "1"},
            )
        self.charge(request, further)
        self._in_flight += further
        try:
            yield
        finally:
            self._in_flight -= further

    def charge(self, request: Request, images: int) -> None:
        """Check the key, and count images against its rate. Raises Problem 401, 429."""
        key = self.keys.check(headers_of(request))
        if self._rate is None or key is None or images == 0:
            return
        ruling = self._rate.take(key, images)
        if not ruling.allowed:
            raise Problem(
                429,
                f"this key may send {self._rate.rate_per_s:g} images a second, "
                f"{self._rate.burst} at once",
                headers={
                    "Retry-After": str(math.ceil(ruling.retry_s)),
                    "RateLimit-Policy": f'"key";q={self._rate.burst};w='
                    f"{math.ceil(self._rate.burst / self._rate.rate_per_s)}",
                    "RateLimit": f'"key";r={ruling.remaining};t={math.ceil(ruling.reset_s)}',
                },
            )

    @property
    def _soon(self) -> int:
        """Images that the workers will be sent next: those in preparation that wait for nothing."""
        return self._preparing - self._decoding.waiting

    def preparing(self) -> Preparing:
        """Count an image that no worker knows of yet."""
        return Preparing(self)

    def prepare(self, images: int) -> None:
        """So many more, or fewer, are prepared now."""
        self._preparing += images

    def refuse_if_hopeless(
        self, deadline_s: float, *, at_door: bool = False, decode_ms: float | None = None
    ) -> None:
        """Problem 429 when so much waits that even the smallest subnet would be late; 504 if it is.

        ``at_door``: all that is prepared here now will be sent before. ``decode_ms``: what its
        image takes in a thread, when its turn comes; None if it needs none.
        """
        smallest_ms = self._workers.latency.infer_ms(self._min_flops)
        wait_ms = self._workers.least_wait_ms(deadline_s)
        wait_ms += self._soon * smallest_ms if at_door else 0.0
        ready_ms = wait_ms
        if decode_ms is not None:  # in the threads of this process; the workers go on meanwhile
            turn_ms = self._decoding.wait_ms(deadline_s)
            ready_ms = max(wait_ms, turn_ms + decode_ms)
            wait_ms = max(wait_ms, turn_ms)
        now = time.monotonic()
        if wait_ms and now + MARGIN * (ready_ms + smallest_ms) / 1000 > deadline_s:
            raise Problem(
                429,
                f"what waits takes {wait_ms:.0f} ms at least; no subnet would answer in time",
                headers={"Retry-After": str(math.ceil(wait_ms / 1000))},
            )
        if now >= deadline_s and not at_door:
            late = "its time was over before it was sent"
            raise Problem(504, late, headers={"Retry-After": "1"})


# Not generators: every request goes through both, and a generator's detours would take longer.


class Visit:
    """A request while it is here (``Admission.admitted``)."""

    __slots__ = ("_admission", "_request", "_share")

    def __init__(self, admission: Admission, request: Request, room: BodyRoom) -> None:
        self._admission, self._request, self._share = admission, request, BodyShare(room)

    def __enter__(self) -> BodyShare:
        self._admission.enter(self._request)
        return self._share

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._share.give_back()
        self._admission.leave(error)


class Preparing:
    """An image that no worker knows of yet (``Admission.preparing``)."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def __enter__(self) -> None:
        self._admission.prepare(1)

    def __exit__(self, *_: object) -> None:
        self._admission.prepare(-1)


def _status(error: BaseException | None) -> int:
    match error:
        case None:
            return 200
        case Problem():
            return error.status
        case asyncio.CancelledError():
            return CLIENT_GONE
    return 500
