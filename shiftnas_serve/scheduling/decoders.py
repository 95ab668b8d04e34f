"""Decoders: the threads that decode images which would hold up whoever brings them."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np

from models.images.header import ImageError
from models.images.image import size_of
from shiftnas_serve.problem import Problem
from shiftnas_serve.scheduling.backlog import Backlog
from shiftnas_serve.scheduling.pending import Pending, finish
from shiftnas_serve.scheduling.work import is_large

THREADS = 2


class Decoders:
    """Takes what waits to be decoded, and lets it wait to run."""

    def __init__(self, backlog: Backlog, max_pixels: int) -> None:
        self._backlog, self._max_pixels = backlog, max_pixels
        self.threads = [
            threading.Thread(target=partial(self._serve, n), name=f"decode-{n}", daemon=True)
            for n in range(THREADS)
        ]
        for thread in self.threads:
            thread.start()

    def _serve(self, number: int) -> None:
        while (one := self._backlog.next_to_decode(number)) is not None:
            try:
                prepare(one, self._max_pixels)
                assert one.work is not None
                self._backlog.work.learn(one.work, one.decode_ms)
                self._backlog.run(one)
            except Problem as problem:
                finish([(one, problem)])
            # No image may end the thread, whatever a decoder makes of it.
            except Exception as error:  # noqa: BLE001
                said = f"{one.place}the image could not be prepared: {error!r:.200}"
                finish([(one, Problem(500, said))])
            del one


def prepare(one: Pending, max_pixels: int) -> None:
    """Decode it, choose its subnet, and resize it for that.

    Raises Problem: of the image, and 422 where no subnet keeps its budgets.
    """
    begun_s = time.monotonic()
    bundle, planner = one.model.bundle, one.model.planner
    photo = one.photo
    try:
        if photo is None:
            side = one.model.largest_side
            photo = bundle.preprocess.decode(one.data, side, max_pixels, one.header)
        plan = one.plan
        if plan is None or plan.shrinks:
            # Time counts: what a latency budget allows now depends on what decoding took.
            elapsed_ms = 1000 * (time.monotonic() - one.came_s)
            plan = one.plan = planner.plan(one.asked, elapsed_ms)
    except ImageError as error:
        raise Problem(error.status, one.place + error.reason) from None
    if plan.shrinks:
        one.aim_s = one.deadline_s - planner.latency.after_ms / 1000
    # A small photo that may shrink is resized when its subnet is chosen, or it would be twice. So
    # is one that a second subnet may look at in another size. Of a large one there are both.
    one_size = plan.second is None or plan.second.side == plan.subnet.side
    one.resized = is_large(*size_of(photo)) or (one_size and not plan.shrinks)
    if one.resized:
        one.pixels = bundle.preprocess.pixels(photo, plan.subnet.side)
        if plan.second is not None and not one_size:
            one.next_pixels = bundle.preprocess.pixels(photo, plan.second.side)
    else:
        one.pixels = np.asarray(photo)
    one.data, one.photo = b"", None
    one.begun_s = begun_s
    one.decode_ms = 1000 * (time.monotonic() - begun_s)
