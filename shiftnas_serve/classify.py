"""Classify: what one request goes through in the HTTP process.

1. its key is checked, its budgets are read from headers         (400, 401)
2. its body is read, bounded in size and time                    (400, 408, 413, 415)
3. the image is decoded in a thread                              (413, 415, 422)
4. the planner turns the budgets into a subnet                   (422)
5. the pixels go to a worker, whose loop runs the subnet         (429 when too many wait)
6. the answer is awaited: two lost workers are 503, lost time is 504
7. the logits become the JSON answer
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from models.bundle import Bundle
from models.preprocess import ImageError, Photo, size_of, sniff_format
from shiftnas_serve.body import ACCEPTED, read_image
from shiftnas_serve.budgets import BUDGET_KINDS, BadBudget, OutOfRange
from shiftnas_serve.frames import Done, Failed, Late
from shiftnas_serve.keys import ApiKeys
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.pace import Pace
from shiftnas_serve.planner import Plan, Planner
from shiftnas_serve.problem import CLIENT_GONE, Problem
from shiftnas_serve.rate_limit import RateLimit
from shiftnas_serve.settings import Settings
from shiftnas_serve.workers import Workers

DEFAULT_TOP_K = 5
# Larger images are decoded and resized in a thread: they would hold up everyone else's requests.
# For smaller ones the way to a thread and back takes longer than the work.
_SMALL_PIXELS = 250_000
_SMALL_JPEG_BYTES = 16_000
# A late answer is better than none for so long; after that the worker is in trouble.
_GRACE_S = 1.0
# Clients send the same few texts again and again.
_BUDGETS = [(k.name, k.header.lower(), lru_cache(4096)(k.parse)) for k in BUDGET_KINDS]

T = TypeVar("T")


@dataclass(slots=True)
class Classified:
    """One image's answer. probabilities: float64 (classes,)."""

    plan: Plan
    done: Done
    decode_ms: float
    probabilities: np.ndarray

    def log(self) -> dict[str, object]:
        """What a log says of it."""
        return {
            "asked": dict(self.plan.asked),
            "subnet": self.plan.subnet.id,
            "flops": self.plan.subnet.flops,
            "degraded": self.plan.degraded,
            "decode_ms": round(self.decode_ms, 3),
            "queue_ms": round(self.done.queue_ms, 3),
            "build_ms": round(self.done.build_ms, 3),
            "infer_ms": round(self.done.infer_ms, 3),
            "batch": self.done.batch,
        }


class Classifier:
    """The request path. One per HTTP process."""

    def __init__(
        self,
        bundle: Bundle,
        planner: Planner,
        workers: Workers,
        metrics: Metrics,
        settings: Settings,
        folder: Path,
    ) -> None:
        self._bundle, self._planner, self._workers = bundle, planner, workers
        self._metrics, self._settings = metrics, settings
        # What answers repeat, as JSON: the beginning of a prediction of each class, and the model.
        self._classes = [
            json.dumps({"label": label, "index": index})[:-1] + ', "probability": '
            for index, label in enumerate(bundle.labels)
        ]
        self._model = json.dumps({"name": bundle.name, "version": bundle.version})
        self._side = bundle.space.resolution(bundle.space.largest)
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self.keys = ApiKeys([key.get_secret_value() for key in settings.api_keys])
        self._rate: RateLimit | None = None
        if settings.rate_per_s is not None:
            path = folder / "rate-limit"
            rate, burst = settings.rate_per_s, settings.rate_burst
            self._rate = RateLimit(path, len(self.keys), rate, burst)
        self._pace = Pace()
        self._in_flight = self._preparing = 0

    def close(self) -> None:
        """Give threads and files back."""
        self._decoders.shutdown(wait=False)
        if self._rate is not None:
            self._rate.close()

    async def __call__(self, request: Request) -> Answer:
        """Answer ``POST /classify``."""
        started = time.monotonic()
        with self.admitted(request):
            asked = read_budgets(request.state.headers)
            try:
                self._refuse_if_hopeless(self._deadline_s(asked, started, time.monotonic()))
            except Problem:
                if "latency_ms" in asked:
                    self._pace.came(started)
                raise
            top_k = read_top_k(request.scope["query_string"], len(self._bundle.labels))
            data = await self.body(request, read_image)
            one = await self.classify(data, asked, started, request)
            request.state.details.append(one.log)
            return self._answer(one, top_k, request.state.request_id)

    @contextmanager
    def admitted(self, request: Request) -> Iterator[None]:
        """Count a request while it is here, and its status when it goes.

        Raises Problem: 401 no key, 429 too many requests, 503 nobody to answer them.
        """
        status = 200
        self._in_flight += 1
        self._metrics.in_flight.inc()
        try:
            self._admit(request)
            yield
        except Problem as problem:
            status = problem.status
            raise
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        except BaseException:
            status = 500
            raise
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.dec()
            self._metrics.answered(status)

    def _admit(self, request: Request) -> None:
        settings = self._settings
        self.charge(request, 1)
        if self._in_flight > settings.max_waiting:
            raise Problem(
                429,
                f"{settings.max_waiting} requests are being answered already; try again",
                headers={"Retry-After": "1"},
            )
        if not self._workers.ready:
            raise Problem(503, "the server is not ready yet", headers={"Retry-After": "1"})

    def charge(self, request: Request, images: int) -> None:
        """Check the key, and count images against its rate. Raises Problem 401, 429."""
        key = self.keys.check(request.state.headers)
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

    async def body(self, request: Request, read: Callable[[Request, int], Awaitable[T]]) -> T:
        """What ``read`` makes of the body, within the limits of size and time (Problem 408)."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.timeout_s):
                return await read(request, settings.max_body_bytes)
        except TimeoutError:
            raise Problem(408, f"no complete body came in {settings.timeout_s:g} s") from None

    async def classify(
        self, data: bytes, asked: Mapping[str, float], started: float, request: Request
    ) -> Classified:
        """Steps 3 to 6 for one encoded image: decode, choose a subnet, run it.

        ``asked``: budgets by the name of their kind. ``started``: when ``request`` came, on the
        monotonic clock. Its body has been read: its client is watched from here on.
        """
        received = time.monotonic()
        deadline = self._deadline_s(asked, started, received)
        self._preparing += 1
        try:
            photo = await self._decode(data)
            decode_ms = 1000 * (time.monotonic() - received)
            plan = self._plan(asked, decode_ms)
            pixels = await self._resize(photo, plan.subnet.side)
        finally:
            self._preparing -= 1
        self._refuse_if_hopeless(deadline)
        answer = await self._workers.run(
            key=plan.subnet.key,
            subnet_id=plan.subnet.id,
            flops=plan.subnet.flops,
            least_flops=self._bundle.min_flops if plan.shrinks else plan.subnet.flops,
            pixels=pixels,
            deadline_s=deadline,
            aim_s=deadline - self._workers.latency.after_ms / 1000 if plan.shrinks else None,
            give_up_s=min(started + self._settings.timeout_s, deadline + _GRACE_S),
            client_gone=lambda: _gone(request),
        )
        if isinstance(answer, Failed):
            raise Problem(500, f"a subnet could not run: {answer.reason}")
        if isinstance(answer, Late):
            waited_ms = 1000 * (time.monotonic() - started)
            raise Problem(504, f"its turn would have come too late; it waited {waited_ms:.0f} ms")
        plan = self._planner.served(plan, answer.key)
        self._observe(plan, answer, decode_ms, 1000 * (time.monotonic() - received))
        return Classified(plan, answer, decode_ms, softmax(answer.logits))

    async def _decode(self, data: bytes) -> Photo:
        preprocess = self._bundle.preprocess
        arguments = (data, self._side, self._settings.max_pixels)
        try:
            if is_small(data):
                return preprocess.decode(*arguments)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoders, preprocess.decode, *arguments)
        except ImageError as error:
            headers = {"Accept": ", ".join(ACCEPTED)} if error.status == 415 else {}
            raise Problem(error.status, error.reason, headers=headers) from None

    async def _resize(self, photo: Photo, side: int) -> np.ndarray:
        pixels = self._bundle.preprocess.pixels
        width, height = size_of(photo)
        if width * height <= _SMALL_PIXELS:
            return pixels(photo, side)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, pixels, photo, side)

    def _deadline_s(self, asked: Mapping[str, float], started: float, received: float) -> float:
        deadline = started + self._settings.timeout_s
        if "latency_ms" in asked:
            deadline = min(deadline, received + asked["latency_ms"] / 1000)
        return deadline

    def _refuse_if_hopeless(self, deadline_s: float) -> None:
        """Problem 429 when so much waits that even the smallest subnet would be late."""
        smallest_ms = self._workers.latency.infer_ms(self._bundle.min_flops)
        wait_ms = self._workers.least_wait_ms(deadline_s) + self._preparing * smallest_ms
        wait_ms *= self._settings.http_processes  # the others have sent as much, on average
        if wait_ms and time.monotonic() + (wait_ms + smallest_ms) / 1000 > deadline_s:
            raise Problem(
                429,
                f"what waits takes {wait_ms:.0f} ms at least; no subnet would answer in time",
                headers={"Retry-After": str(math.ceil(wait_ms / 1000))},
            )

    def _plan(self, asked: Mapping[str, float], elapsed_ms: float) -> Plan:
        latency = self._planner.latency = self._workers.latency
        now = time.monotonic()
        workers = self._settings.workers / self._settings.http_processes
        pace_ms = self._pace.share_ms(now, workers)
        try:
            plan = self._planner.plan(asked, elapsed_ms, pace_ms)
        except OutOfRange as error:
            raise Problem(422, str(error), extra={"allowed": error.allowed}) from None
        self._pace.came(now, None if plan.shrinks else latency.infer_ms(plan.subnet.flops))
        return plan

    def _observe(self, plan: Plan, done: Done, decode_ms: float, total_ms: float) -> None:
        metrics = self._metrics
        metrics.decode_seconds.observe(decode_ms / 1000)
        metrics.queue_seconds.observe(done.queue_ms / 1000)
        metrics.infer_seconds.observe(done.infer_ms / 1000)
        if done.build_ms:
            metrics.build_seconds.observe(done.build_ms / 1000)
        if "flops" in plan.asked:
            metrics.budget_use.observe(plan.subnet.flops / plan.asked["flops"])
        if plan.degraded:
            metrics.degraded.inc()
        overhead_ms = total_ms - decode_ms - done.queue_ms - done.infer_ms - done.build_ms
        self._workers.observed(plan.subnet.flops, done.infer_ms / done.batch, overhead_ms)

    def _answer(self, one: Classified, top_k: int, request_id: str) -> Answer:
        plan, done, probabilities = one.plan, one.done, one.probabilities
        best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
        predictions = ", ".join(f"{self._classes[i]}{probabilities[i].item()!r}}}" for i in best)
        budget = budget_json(tuple(plan.asked.items()), plan.degraded)
        body = (
            f'{{"predictions": [{predictions}], "budget": {budget}, '
            f'"model": {self._model}, "request_id": "{request_id}", '
            f'"subnet": {plan.subnet.described}}}'
        ).encode()
        timing = (
            f"decode;dur={one.decode_ms:.2f}, queue;dur={done.queue_ms:.2f}, "
            f'infer;dur={done.infer_ms:.3f}, build;dur={done.build_ms:.2f};desc="{done.source}"'
        )
        return Answer(
            body,
            [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"served-flops", b"%d" % plan.subnet.flops),
                (b"server-timing", timing.encode()),
            ],
        )


@dataclass(slots=True)
class Answer:
    """A 200 that is JSON, as ASGI wants it."""

    body: bytes
    headers: list[tuple[bytes, bytes]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def read_budgets(headers: Mapping[str, str]) -> dict[str, float]:
    """Every budget that the headers (by lower-case name) name, by the name of its kind.

    Raises Problem 400 for garbage.
    """
    asked: dict[str, float] = {}
    for name, header, parse in _BUDGETS:
        text = headers.get(header)
        if text is not None:
            try:
                asked[name] = parse(text)
            except BadBudget as error:
                raise Problem(400, str(error)) from None
    return asked


@lru_cache(4096)
def budget_json(asked: tuple[tuple[str, float], ...], degraded: bool) -> str:
    """What an answer says of the budgets that were asked for."""
    nothing = {kind.name: None for kind in BUDGET_KINDS}
    return json.dumps({**nothing, **dict(asked), "degraded": degraded})


def read_top_k(query: bytes, classes: int) -> int:
    """How many predictions to answer; more than there are classes means all."""
    text = QueryParams(query).get("top_k") if query else None
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) >= 1):
        raise Problem(400, f"top_k={text!r:.40} is not a number from 1 to {classes}")
    return min(int(text), classes)


def is_small(data: bytes) -> bool:
    """Whether decoding these bytes takes no more than a moment, as far as their first bytes say.

    A JPEG spends bits on every block of 8 x 8 pixels, so a short one is not large. A PNG says its
    size first. A WebP may hold 16,000 x 16,000 pixels of one colour in no space at all.
    """
    match sniff_format(data):
        case "JPEG":
            return len(data) <= _SMALL_JPEG_BYTES
        case "PNG" if len(data) >= 24:
            width, height = struct.unpack(">II", data[16:24])
            return width * height <= _SMALL_PIXELS
        case "WEBP":
            return False
        case _:
            return True  # refused before anything is decoded


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (classes,) -> probabilities, float64 (classes,)."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    powers /= powers.sum()
    return powers
