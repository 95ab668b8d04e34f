"""Worker: the process that runs subnets, hosted by LitServe.

``SubnetLoop`` replaces LitServe's loop and queue: jobs come from the HTTP processes (``inbox``),
wait (``waiting``), and run grouped by subnet in the order of deadlines. An error belongs to its
group of one subnet, never to the others.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import litserve
import numpy as np
from litserve.loops.base import LitLoop

from models.arch import Arch
from models.bundle import Bundle, load_bundle
from shiftnas_serve.engine import Engine
from shiftnas_serve.frames import (
    Building,
    Done,
    Failed,
    Frame,
    Hello,
    Job,
    Late,
    Resident,
    pack,
)
from shiftnas_serve.inbox import Client, Inbox, socket_path
from shiftnas_serve.latency import LatencyTable, measure_ms
from shiftnas_serve.log import configure_log
from shiftnas_serve.planner import latency_steps
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.selection import Selection
from shiftnas_serve.settings import Settings
from shiftnas_serve.waiting import Group, Waiter, Waiting

_MEASURED_SUBNETS = 5
_IDLE_S = 1.0


class ClassifyApi(litserve.LitAPI):
    """What LitServe starts in every worker process. Light to pickle; ``setup`` does the work."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(api_path="/classify", loop=SubnetLoop())
        self.settings = settings
        self.folder = folder

    def setup(self, device: str) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to pass on
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent(self.folder)
        settings = self.settings
        configure_log(settings.log_level, settings.log_format)
        bundle = load_bundle(settings.bundle)
        runtime = build_runtime(settings.runtime, settings.device, settings.threads)
        pinned = [bundle.answer(budget) for budget in settings.pinned_flops]
        engine = Engine(bundle, runtime, settings.session_bytes, pinned)
        for arch in pinned:
            engine.session(arch)
        points = measure_latency(bundle, engine)
        path = socket_path(self.folder, int(os.environ["LITSERVE_WORKER_ID"]))
        inbox = Inbox(path, Hello(os.getpid(), points, runtime.describe()))
        selection = Selection(bundle, latency_archs(bundle), LatencyTable.of(points))
        self.state = WorkerState(bundle, engine, inbox, selection)

    def predict(self, x: object, **kwargs: object) -> object:
        """LitServe asks for one; the loop calls the engine instead."""
        raise AssertionError("SubnetLoop runs the subnets")


@dataclass(frozen=True)
class WorkerState:
    """What a worker keeps."""

    bundle: Bundle
    engine: Engine
    inbox: Inbox
    selection: Selection


def measure_latency(bundle: Bundle, engine: Engine) -> tuple[tuple[float, float], ...]:
    """(FLOPs, milliseconds) of one image for a handful of subnets between the ends."""
    low, high = bundle.min_flops, bundle.max_flops
    budgets = [low + (high - low) * i / (_MEASURED_SUBNETS - 1) for i in range(_MEASURED_SUBNETS)]
    points = {}
    for arch in dict.fromkeys(bundle.answer(budget) for budget in budgets):
        side = bundle.space.resolution(arch)
        images = np.zeros((1, 3, side, side), np.float32)
        session, _ = engine.session(arch)
        points[float(bundle.space.flops(arch))] = measure_ms(lambda: session.run(images), 0.05)  # noqa: B023
    return tuple(sorted(points.items()))


def expected_archs(bundle: Bundle) -> list[Arch]:
    """What will probably be asked for: the stored answers, or those to latency budgets."""
    return list(bundle.archs()) if bundle.answers else latency_archs(bundle)


def latency_archs(bundle: Bundle) -> list[Arch]:
    """The answers to latency budgets, each once."""
    return list(dict.fromkeys(bundle.answer(budget) for budget in latency_steps(bundle)))


def end_with_parent(folder: Path) -> None:
    """End this process when its parent is gone, also after a kill -9 of the parent.

    ``folder``: the run's own, which the parent could not remove then.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class SubnetLoop(LitLoop):
    """Read what came, run the most urgent group, again.

    While nothing waits, sessions for the answers not built yet are built, one at a time, so that
    soon no budget is new.
    """

    def __call__(self, lit_api: litserve.LitAPI, device: str, *litserves_own: object) -> None:
        assert isinstance(lit_api, ClassifyApi)
        SubnetRunner(lit_api.state, lit_api.settings).run()


class SubnetRunner:
    """The loop itself and what it keeps between two turns."""

    def __init__(self, state: WorkerState, settings: Settings) -> None:
        self._bundle, self._engine, self._inbox = state.bundle, state.engine, state.inbox
        self._selection, self._max_batch = state.selection, settings.max_batch
        self._waiting = Waiting()
        self._unbuilt = expected_archs(state.bundle) if settings.prebuild else []
        self._said: frozenset[str] = frozenset()
        self._changes, self._say_at_s = -1, 0.0

    def run(self) -> None:
        """Until SIGTERM came and the last HTTP process has gone: what is in flight is finished."""
        ending = False

        def end(number: int, frame: FrameType | None) -> None:
            nonlocal ending
            ending = True
            if not self._inbox.connected:
                raise SystemExit(0)

        signal.signal(signal.SIGTERM, end)
        while not ending or self._inbox.connected:
            idle = not self._waiting and not self._unbuilt
            self._say_resident(at_once=idle)
            self._receive(_IDLE_S if idle else 0.0)
            group = self._waiting.take(time.monotonic(), self._selection, self._max_batch)
            if group is not None:
                self._run(group)
            elif self._unbuilt:
                evictions = self._engine.evictions
                self._inbox.tell_all(Building())
                self._engine.session(self._unbuilt.pop())
                if self._engine.evictions > evictions:
                    self._unbuilt.clear()  # memory is full; more would only push others out

    def _receive(self, timeout_s: float) -> None:
        for client, frame in self._inbox.receive(timeout_s):
            if isinstance(frame, Job):
                self._waiting.add(client, frame)
            else:
                self._waiting.cancel(client, frame.id)
        while self._inbox.lost:
            self._waiting.forget(self._inbox.lost.pop())

    def _run(self, group: Group) -> None:
        if group.late:
            self._reply((one, Late(one.job.id)) for one in group.waiters)
            return
        now = time.monotonic()
        arch, flops = self._selection.arch(group.key)
        if not self._engine.is_resident(arch):
            self._inbox.tell_all(Building())
        preprocess, side = self._bundle.preprocess, self._bundle.space.resolution(arch)
        try:
            pixels = [preprocess.resized(one.job.pixels, side) for one in group.waiters]
            done = self._engine.run(arch, preprocess.normalize(np.stack(pixels)))
        # Whatever a runtime raises concerns this subnet: the group is told, the worker goes on.
        except Exception as error:  # noqa: BLE001
            reason = f"{type(error).__name__}: {error}"
            self._reply((one, Failed(one.job.id, reason)) for one in group.waiters)
            return
        count = len(group.waiters)
        self._reply(
            (
                one,
                Done(
                    one.job.id,
                    logits,
                    1000 * (now - one.job.sent_s),
                    done.infer_ms,
                    done.build_ms,
                    count,
                    done.source,
                    group.key,
                ),
            )
            for one, logits in zip(group.waiters, done.logits, strict=True)
        )
        # What a turn takes beside the inference is no less in the way of the next.
        turn_ms = 1000 * (time.monotonic() - now) - done.build_ms
        latency = self._selection.latency.observed(flops, turn_ms / count, images=count)
        self._selection.latency = latency

    def _reply(self, answers: Iterable[tuple[Waiter, Frame]]) -> None:
        by_client: dict[Client, list[bytes]] = {}
        for waiter, answer in answers:
            assert isinstance(waiter.client, Client)
            by_client.setdefault(waiter.client, []).append(pack(answer))
        for client, frames in by_client.items():
            self._inbox.send(client, b"".join(frames))

    def _say_resident(self, *, at_once: bool) -> None:
        # Not at every step: a list is long, and nothing depends on its being true to the moment.
        changes = self._engine.builds + self._engine.evictions
        if changes == self._changes or not (at_once or time.monotonic() >= self._say_at_s):
            return
        self._changes, self._say_at_s = changes, time.monotonic() + 0.25
        now = frozenset(self._bundle.space.arch_id(arch) for arch in self._engine.resident())
        self._inbox.tell_all(Resident(tuple(now - self._said), tuple(self._said - now)))
        self._inbox.greet(Resident(tuple(now), ()))
        self._said = now
