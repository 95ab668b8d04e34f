"""Classify: what one request goes through in the HTTP process.

1. its key and rate are checked, its budgets read from headers, and whether there is time for it:
   400, 401; 429 over the rate, too many at once, or too much waits; 503 no worker is ready
2. its body is read, bounded in size and time: 400, 408, 413, 415
3. the planner turns the budgets into a subnet: 422
4. the image is decoded and resized, a large one in its turn in a thread: 413, 415, 422; 429 what
   waits leaves no time for it; 499 the client has gone; 504 its turn came too late
   (a latency budget: 4 before 3, since what is left of it counts; a small photo is resized in 5)
5. the pixels go to a worker, whose loop runs the subnet: 429 and 504 as in 4
6. the answer is awaited: 499; 500 the subnet failed, or two workers were lost; 503 no worker is
   ready; 504 lost time
7. the logits become the JSON answer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from starlette.datastructures import QueryParams
from starlette.requests import Request

from models.bundle.folder import Bundle
from models.images.header import ImageError, ImageHeader
from models.images.image import Photo, read_header, size_of
from models.space.quantity import MAX_LENGTH
from shiftnas_serve.admission import Admission
from shiftnas_serve.answer import Answer, AnswerWriter, Classified, softmax
from shiftnas_serve.body import ACCEPTED, BodyLimits, read_image
from shiftnas_serve.budgets import (
    BUDGET_KINDS,
    BadBudget,
    OutOfRange,
    earliest_deadline_s,
    may_degrade,
)
from shiftnas_serve.decoding import (
    LARGE_BODY_BYTES,
    Decoding,
    decode_work,
    is_large,
    is_small,
    resize_work,
)
from shiftnas_serve.frames import Done, Failed, Late
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.planner import Plan, Planner
from shiftnas_serve.problem import Problem
from shiftnas_serve.request_context import headers_of
from shiftnas_serve.settings import Settings
from shiftnas_serve.workers import Workers

DEFAULT_TOP_K = 5
# A late answer is better than none for so long; after that the worker is in trouble.
_GRACE_S = 1.0
_NO_TURN = nullcontext()
# Clients send the same few texts again and again.
_BUDGETS = [(k.name, k.header.lower(), lru_cache(4096)(k.parse)) for k in BUDGET_KINDS]

T = TypeVar("T")


class Asker(NamedTuple):
    """Who waits for an image: its budgets, and for how long.

    ``deadline_s`` is on the monotonic clock; ``client_gone`` returns when nobody waits any more.
    """

    asked: Mapping[str, float]
    deadline_s: float
    client_gone: Callable[[], Awaitable[None]]


class Classifier:
    """The request path. One per revision and HTTP process."""

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
        self._min_flops = bundle.min_flops
        self._writer = AnswerWriter(bundle)
        self._side = bundle.space.resolution(bundle.space.largest)
        # Of long bodies. Images have their own, whose work is known and has an order.
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="body")
        self.body_limits = BodyLimits(settings.max_body_bytes, settings.timeout_s)
        self._decoding = Decoding()
        least = bundle.min_flops
        self.admission = Admission(workers, metrics, settings, folder, least, self._decoding)

    def close(self) -> None:
        """Give threads and files back."""
        self.threads.shutdown(wait=False)
        self._decoding.close()
        self.admission.close()

    async def __call__(self, request: Request) -> Answer:
        """Answer ``POST /classify``."""
        started = time.monotonic()
        with self.admission.admitted(request) as share:
            headers = headers_of(request)
            asked = read_budgets(headers)
            deadline_s = self._deadline_s(asked, started, time.monotonic())
            decode_ms = 0.0 if is_long(headers) else None
            self.admission.refuse_if_hopeless(deadline_s, at_door=True, decode_ms=decode_ms)
            top_k = read_top_k(request.scope["query_string"], len(self._bundle.labels))
            data = await read_image(request, self.body_limits, share, self.threads)
            one = await self.classify(data, asked, started, request)
            request.state.details.append(one.log)
            return self._writer.write(one, top_k, request.state.request_id)

    async def classify(
        self,
        data: bytes,
        asked: Mapping[str, float],
        started: float,
        request: Request,
        turns: asyncio.Semaphore | None = None,
    ) -> Classified:
        """Steps 3 to 6 for one encoded image: decode, choose a subnet, run it.

        ``asked``: budgets by the name of their kind. ``started``: when ``request`` came, on the
        monotonic clock. Its body has been read: its client is watched from here on. ``turns``: how
        many images of this request may be decoded, and be here as pixels, before a worker has them.
        """
        received = time.monotonic()
        deadline = self._deadline_s(asked, started, received)
        asker = Asker(asked, deadline, lambda: _gone(request))
        with self.admission.preparing(), await _turn(turns):
            if not self.admission.alone:
                # Requests that came together all pass the door before the first is worked on, so
                # that those that must be refused hear so at once.
                await asyncio.sleep(0)
            decoding = time.monotonic()
            if may_degrade(asked):
                # The subnet depends on what decoding took, and the worker may choose a smaller one:
                # it prepares a small photo, for that one, or time would go on resizing it twice.
                photo = await self._in_turn(data, self._decode, asker)
                plan = self._plan(asked, 1000 * (time.monotonic() - received))
                size = size_of(photo)
                prepared = is_large(*size)
                if prepared:
                    prepare = partial(self._bundle.preprocess.pixels, photo, plan.subnet.side)
                    pixels = await self._decoding.run(
                        prepare, resize_work(*size), deadline, asker.client_gone
                    )
                else:
                    pixels = np.asarray(photo)
            else:
                plan, prepared = self._plan(asked, 0.0), True
                read = partial(self._pixels, side=plan.subnet.side)
                pixels = await self._in_turn(data, read, asker)
            decode_ms = 1000 * (time.monotonic() - decoding)
        self.admission.refuse_if_hopeless(deadline)
        answer = await self._workers.run(
            key=plan.subnet.key,
            subnet_id=plan.subnet.id,
            flops=plan.subnet.flops,
            least_flops=self._min_flops if plan.shrinks else plan.subnet.flops,
            pixels=pixels,
            prepared=prepared,
            deadline_s=deadline,
            aim_s=deadline - self._workers.latency.after_ms / 1000 if plan.shrinks else None,
            give_up_s=min(started + self._settings.timeout_s, deadline + _GRACE_S),
            client_gone=asker.client_gone,
        )
        if isinstance(answer, Failed):
            raise Problem(500, f"a subnet could not run: {answer.reason}")
        if isinstance(answer, Late):
            waited_ms = 1000 * (time.monotonic() - started)
            raise Problem(504, f"its turn would have come too late; it waited {waited_ms:.0f} ms")
        plan = self._planner.served(plan, answer.key)
        self._observe(plan, answer, decode_ms, 1000 * (time.monotonic() - decoding))
        return Classified(plan, answer, decode_ms, softmax(answer.logits))

    async def _in_turn(
        self, data: bytes, read: Callable[[bytes, ImageHeader], T], asker: Asker
    ) -> T:
        """``read(data, its header)``, in a thread unless it takes but a moment."""
        try:
            header = read_header(data, self._settings.max_pixels)
            if is_small(header, len(data)):
                return read(data, header)
            if may_degrade(asker.asked):
                self._plan(asker.asked, 0.0)  # what no server can keep is said before it waits
            work = decode_work(header, len(data))
            decode_ms = self._decoding.expected_ms(work)
            self.admission.refuse_if_hopeless(asker.deadline_s, decode_ms=decode_ms)
            do = partial(read, data, header)
            return await self._decoding.run(do, work, asker.deadline_s, asker.client_gone)
        except ImageError as error:
            headers = {"Accept": ", ".join(ACCEPTED)} if error.status == 415 else {}
            raise Problem(error.status, error.reason, headers=headers) from None

    def _decode(self, data: bytes, header: ImageHeader) -> Photo:
        preprocess, most = self._bundle.preprocess, self._settings.max_pixels
        return preprocess.decode(data, self._side, most, header)

    def _pixels(self, data: bytes, header: ImageHeader, side: int) -> np.ndarray:
        return self._bundle.preprocess.pixels(self._decode(data, header), side)

    def _deadline_s(self, asked: Mapping[str, float], started: float, received: float) -> float:
        return min(started + self._settings.timeout_s, earliest_deadline_s(asked, received))

    def _plan(self, asked: Mapping[str, float], elapsed_ms: float) -> Plan:
        self._planner.latency = self._workers.latency
        try:
            return self._planner.plan(asked, elapsed_ms)
        except OutOfRange as error:
            raise Problem(422, str(error), extra={"allowed": error.allowed}) from None

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
        overhead_ms = total_ms - decode_ms - done.queue_ms - done.turn_ms - done.build_ms
        self._workers.observed(plan.subnet.flops, done.turn_ms / done.batch, overhead_ms)


async def _turn(turns: asyncio.Semaphore | None) -> AbstractContextManager[object]:
    if turns is None:
        return _NO_TURN
    await turns.acquire()
    taken = ExitStack()
    taken.callback(turns.release)
    return taken


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
            if len(text) > MAX_LENGTH:  # nothing so long is remembered
                raise Problem(400, f"{header}: longer than {MAX_LENGTH} characters")
            try:
                asked[name] = parse(text)
            except BadBudget as error:
                raise Problem(400, str(error)) from None
    return asked


def read_top_k(query: bytes, classes: int) -> int:
    """How many predictions to answer; more than there are classes means all."""
    text = QueryParams(query).get("top_k") if query else None
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) >= 1):
        raise Problem(400, f"top_k={text!r:.40} is not a number from 1 to {classes}")
    return min(int(text), classes)


def is_long(headers: Mapping[str, str]) -> bool:
    """Whether the body, as far as the headers say, holds an image that is decoded in a thread."""
    length = headers.get("content-length", "")
    return length.isdecimal() and len(length) < 20 and int(length) > LARGE_BODY_BYTES
