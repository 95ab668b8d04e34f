"""Library: ``load`` a bundle, ``classify`` images within budgets. No HTTP.

What one image goes through, whoever asks (HTTP asks the same way):

1. its budgets are read, and whether there is time for it: 400, 422; 429 too much waits
2. it waits to be decoded, if that takes more than a moment (``backlog``)
3. it is decoded, its subnet is chosen and it is resized (``decoders.prepare``): 413, 415, 422
4. it waits for its turn (``turns``): 504 its turn comes too late
5. its subnet runs, with others that wait for the same (``runners``): 500
6. its logits become a ``Result``
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from PIL import Image

from models.images.header import ImageError, ImageHeader
from models.images.image import Photo, read_header, size_of
from shiftnas_serve.budgets import earliest_deadline_s, may_degrade
from shiftnas_serve.budgets.asked import parse_budgets
from shiftnas_serve.engine.model import Model, load_model
from shiftnas_serve.engine.reload import Reloaded, load_beside, release_memory
from shiftnas_serve.engine.result import Result
from shiftnas_serve.problem import Problem, late
from shiftnas_serve.scheduling.backlog import Backlog
from shiftnas_serve.scheduling.decoders import THREADS, Decoders, prepare
from shiftnas_serve.scheduling.pending import Pending, end_wait, place_of
from shiftnas_serve.scheduling.room import Room
from shiftnas_serve.scheduling.runners import Runners
from shiftnas_serve.scheduling.work import decode_work, is_small
from shiftnas_serve.settings import DEFAULT_BUNDLE, EngineSettings, checked
from shiftnas_serve.source import ImageSource, read_source

TOP_K = 5
WEDGED = 70
"""Exit status of a process that ends because an inference stands still (EX_SOFTWARE)."""
# A late answer is better than none for so long; after that a runner is in trouble.
_GRACE_S = 1.0
# Most answers are there by then, and cost no watch over who waits: a task, which is as much work as
# a tenth of a small subnet's answer.
_WATCH_AFTER_S = 0.1
# For threads to end with what they are at.
_END_S = 5.0

_LOG = structlog.get_logger("shiftnas_serve.library")


def load(bundle: Path | str = DEFAULT_BUNDLE, **settings: Any) -> Engine:
    """An engine for the bundle in a folder.

    ``settings``: fields of ``EngineSettings``. Raises ValueError with what is wrong.
    """
    return Engine(checked(EngineSettings, {"bundle": Path(bundle), **settings}))


class Engine:
    """A bundle that is ready to classify, and its threads. Thread-safe; a context that closes it.

    One that nobody holds any more is closed too.

    ``wedged`` is called with a reason when an inference stands still for ``stall_s``, or a thread
    of inference has ended: nothing but the end of the process helps then. By default that is
    logged.
    """

    def __init__(
        self, settings: EngineSettings, wedged: Callable[[str], None] | None = None
    ) -> None:
        self.settings = settings
        self.path = settings.bundle
        self.model = load_model(settings.bundle, settings)
        self.room = Room(settings.max_waiting, settings.max_waiting_bytes)
        self.wedged: str | None = None
        """Why inference stands still, if it does."""
        self._on_wedged = wedged
        self._reloading = threading.Lock()
        self._backlog = Backlog(THREADS, settings.workers, settings.max_batch)
        decoders = Decoders(self._backlog, settings.max_pixels)
        told = _weakly(self._is_wedged)  # else the threads would keep it, and nothing end them
        self.runners = Runners(self._backlog, settings.workers, settings.stall_s, told)
        # When the program ends, too: a library must not be at work while its memory is given back.
        self._end = weakref.finalize(self, _end, self._backlog, self.runners, decoders)
        if settings.prebuild:
            self.runners.prebuild(self.model)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; who waits gets Problem 503."""
        self._end()

    def _is_wedged(self, reason: str) -> None:
        self.wedged = reason
        _LOG.critical("wedged", reason=reason)
        if self._on_wedged is not None:
            self._on_wedged(reason)

    # -- for threads -------------------------------------------------------------------------

    def classify(
        self,
        image: ImageSource,
        *,
        flops: str | float | None = None,
        latency_ms: str | float | None = None,
        confidence: str | float | None = None,
        top_k: int = TOP_K,
        **others: str | float | None,
    ) -> Result:
        """The classes of an image, from the largest subnet within the budgets.

        ``flops``: multiply-adds, as ``4e6`` or ``"4M"``. ``latency_ms``: from here to the answer.
        ``confidence``: how sure it must be, 0 to 1; where a small subnet is not, a larger answers.
        ``others``: budgets of kinds that were added, by their names.
        Raises Problem: why there is no answer.
        """
        budgets = {"flops": flops, "latency_ms": latency_ms, "confidence": confidence, **others}
        return self.classify_batch([image], **budgets, top_k=top_k)[0]

    def classify_batch(
        self,
        images: Iterable[ImageSource],
        *,
        flops: str | float | None = None,
        latency_ms: str | float | None = None,
        confidence: str | float | None = None,
        top_k: int = TOP_K,
        **others: str | float | None,
    ) -> list[Result]:
        """As ``classify``, each image within the same budgets, in order."""
        named = {"flops": flops, "latency_ms": latency_ms, "confidence": confidence, **others}
        asked = parse_budgets(named)
        _check_top_k(top_k)
        if isinstance(images, str | bytes | Path | Image.Image):
            raise ValueError("classify_batch takes several images: give a list, or call classify")
        background = self.model.bundle.preprocess.background
        every = list(images)
        places = [place_of(number, len(every)) for number in range(1, len(every) + 1)]
        sources = [
            read_source(image, background, place)
            for image, place in zip(every, places, strict=True)
        ]
        with self.room.share() as share:
            share.add(len(sources))
            share.grow(sum(len(one) for one in sources if isinstance(one, bytes)))
            pending = [
                self._pending(source, asked, top_k, Future(), place=place)
                for source, place in zip(sources, places, strict=True)
            ]
            try:
                for one in pending:
                    self._begin(one)
                return [self._wait(one) for one in pending]
            finally:
                for one in pending:
                    if not one.future.done():
                        self._backlog.cancel(one)

    def _wait(self, one: Pending) -> Result:
        assert isinstance(one.future, Future)
        try:
            return one.future.result(one.deadline_s + _GRACE_S - time.monotonic())
        except TimeoutError:
            if one.first is not None:
                return one.first
            raise late("no answer came in time") from None

    # -- for event loops ---------------------------------------------------------------------

    async def aclassify(
        self,
        image: ImageSource,
        *,
        flops: str | float | None = None,
        latency_ms: str | float | None = None,
        confidence: str | float | None = None,
        top_k: int = TOP_K,
        **others: str | float | None,
    ) -> Result:
        """As ``classify``, without holding up the event loop."""
        named = {"flops": flops, "latency_ms": latency_ms, "confidence": confidence, **others}
        asked = parse_budgets(named)
        _check_top_k(top_k)
        background = self.model.bundle.preprocess.background
        if isinstance(image, bytes | np.ndarray):
            source = read_source(image, background)
        else:  # a file may have to be read
            source = await asyncio.to_thread(read_source, image, background)
        with self.room.share() as share:
            share.add(1)
            share.grow(len(source) if isinstance(source, bytes) else 0)
            return await self.answer(source, asked, top_k)

    async def answer(
        self,
        source: bytes | Photo,
        asked: Mapping[str, float],
        top_k: int,
        *,
        model: Model | None = None,
        give_up_s: float | None = None,
        gone: Callable[[], Awaitable[None]] | None = None,
        place: str = "",
    ) -> Result:
        """What ``aclassify`` does, of budgets that are read and an image that has its room.

        ``model``: that of a request with several images, which have one version.
        ``give_up_s``: when at last, on the monotonic clock. ``gone`` returns when nobody waits any
        more: Problem 499 then. ``place``: of one of several (``place_of``).
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        one = self._pending(source, asked, top_k, future, loop, model, place)
        if give_up_s is not None:
            one.deadline_s = min(one.deadline_s, give_up_s)
        if self.room.images > 1 and may_degrade(asked):
            # Images that came together all pass here before the first is worked on, so that those
            # that must be refused hear so at once.
            self._backlog.arriving += 1
            try:
                await asyncio.sleep(0)
            finally:
                self._backlog.arriving -= 1
        self._begin(one)
        last_s = min(one.deadline_s + _GRACE_S, give_up_s or one.deadline_s + _GRACE_S)
        watch: list[asyncio.Task[None]] = []
        soon_s = min(_WATCH_AFTER_S, max(last_s - time.monotonic(), 0.0))
        timer = loop.call_later(
            soon_s, lambda: watch.append(loop.create_task(end_wait(one, last_s, gone)))
        )
        try:
            result = await future
        finally:
            timer.cancel()
            for task in watch:
                task.cancel()
            if one.outcome is None:
                self._backlog.cancel(one)
        self._observe(one, result)
        return result

    def _observe(self, one: Pending, result: Result) -> None:
        timing = result.timing
        total_ms = 1000 * (time.monotonic() - one.queued_s)
        overhead_ms = total_ms - timing.queue_ms - timing.infer_ms - timing.build_ms
        planner = one.model.planner
        planner.latency = planner.latency.answered(overhead_ms)

    # -- the way of an image -----------------------------------------------------------------

    def refuse_if_hopeless(self, asked: Mapping[str, float], *, large: bool = False) -> None:
        """Before an image is here: Problem 429 when too much waits for one with these budgets.

        And 422 where no subnet would keep them. ``large``: it will have to wait for a thread that
        decodes it.
        """
        planner = self.model.planner
        if may_degrade(asked):
            planner.quick_plan(asked)
        now = time.monotonic()
        deadline_s = min(now + self.settings.timeout_s, earliest_deadline_s(asked, now))
        smallest_ms = planner.cost_ms(planner.smallest)
        self._backlog.refuse_if_hopeless(deadline_s, smallest_ms, decode_ms=0.0 if large else None)

    def _pending(
        self,
        source: bytes | Photo,
        asked: Mapping[str, float],
        top_k: int,
        future: asyncio.Future[Result] | Future[Result],
        loop: asyncio.AbstractEventLoop | None = None,
        model: Model | None = None,
        place: str = "",
    ) -> Pending:
        now = time.monotonic()
        deadline_s = min(now + self.settings.timeout_s, earliest_deadline_s(asked, now))
        one = Pending(model or self.model, asked, top_k, now, deadline_s, future, loop, place)
        if isinstance(source, bytes):
            one.data = source
        else:
            one.photo = source
        return one

    def _begin(self, one: Pending) -> None:
        """Prepare it, or let it wait for that. Raises Problem."""
        try:
            one.plan = one.model.planner.quick_plan(one.asked)
            if one.photo is None:
                one.header = header = read_header(one.data, self.settings.max_pixels)
            else:
                header = ImageHeader("pixels", *size_of(one.photo))
            if one.plan is None or not is_small(header, len(one.data)):
                generator = one.plan is None
                one.work = decode_work(header, len(one.data), generator=generator)
        except ImageError as error:
            raise Problem(error.status, one.place + error.reason) from None
        if one.work is not None:
            self._backlog.decode(one)
        else:
            prepare(one, self.settings.max_pixels)
            self._backlog.run(one, wake=one.loop is None)
            if one.loop is not None:  # first comes what else is ready in this turn of the loop
                one.loop.call_soon(self._backlog.wake_one)

    # -- another version ---------------------------------------------------------------------

    def reload(self, path: Path | None = None, *, wait: bool = False) -> Reloaded:
        """Serve the bundle at ``path`` (None: the path that is served) from the next image on.

        In two phases: it is loaded, checked, built and measured beside the old one; then they
        change places. What is in flight ends with the version that it began with.

        ``wait``: for the end of another reload that is under way.
        Raises Problem: 409 another reload is under way, 422 what is wrong with the bundle, 500 an
        error of our own; the old one is served on then. 503 the engine is closed.
        """
        if self._backlog.closed:
            raise Problem(503, "the engine is closed; load another")
        if not self._reloading.acquire(blocking=wait):
            raise Problem(409, "another reload is under way; try again when it is done")
        try:
            started = time.monotonic()
            path, previous = path or self.path, self.model
            model = load_beside(previous, path, self.settings)
            changed = model.name != previous.name
            self.path = path
            if changed:
                weakref.finalize(previous.bundle, release_memory)
                self.model = model
        finally:
            self._reloading.release()
        if changed and self.settings.prebuild:
            self.runners.prebuild(model)
        duration_ms = 1000 * (time.monotonic() - started)
        return Reloaded(model.name, previous.name, changed, duration_ms)


def _check_top_k(top_k: int) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r}; it is how many predictions to answer, 1 or more")


def _weakly(method: Callable[[str], None]) -> Callable[[str], None]:
    """The method, as long as there is what it belongs to."""
    known = weakref.WeakMethod(method)

    def call(text: str) -> None:
        if (found := known()) is not None:
            found(text)

    return call


def _end(backlog: Backlog, runners: Runners, decoders: Decoders) -> None:
    runners.close()
    backlog.close()
    end_s = time.monotonic() + _END_S
    for thread in (*runners.threads, *decoders.threads):
        if thread is not threading.current_thread():
            thread.join(max(end_s - time.monotonic(), 0.0))


__all__ = ["Engine", "Problem", "load"]
