"""Worker: the process that runs subnets, hosted by LitServe.

``SubnetLoop`` replaces LitServe's batching: what waits is taken at once, grouped by subnet, and
run in the order of deadlines. An error belongs to its group of one subnet, never to the others.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast

import litserve
import numpy as np
from litserve.callbacks import CallbackRunner
from litserve.loops.base import LitLoop
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType

from models.arch import Arch
from models.bundle import Bundle, load_bundle
from shiftnas_serve.engine import Engine
from shiftnas_serve.latency import measure_ms
from shiftnas_serve.log import configure_log
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.settings import Settings
from shiftnas_serve.status import WorkerFile

_MEASURED_SUBNETS = 5
# LitServe's processes wait for each other in calls of a second to the manager. The call of one
# that died lives on there, and swallows what it is handed; after this long it is over.
GHOST_S = 1.2


@dataclass(frozen=True)
class Job:
    """What the HTTP process sends: uint8 pixels (side, side, 3) and the choices of an arch.

    ``deadline_s`` is on the machine's monotonic clock, which all its processes share.
    """

    indices: tuple[int, ...]
    pixels: np.ndarray
    sent_s: float
    deadline_s: float


@dataclass(frozen=True)
class Done:
    """What comes back. logits: float32 (classes,); None when the deadline had passed."""

    logits: np.ndarray | None
    queue_ms: float
    infer_ms: float
    build_ms: float
    batch: int


@dataclass(frozen=True)
class Failed:
    """What comes back when a subnet could not run."""

    reason: str


@dataclass(frozen=True)
class _Waiting:
    response_queue_id: int
    uid: str
    job: Job


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
        worker_id = int(os.environ["LITSERVE_WORKER_ID"])
        file = WorkerFile(self.folder, worker_id)
        settings = self.settings
        configure_log(settings.log_level, settings.log_format)
        bundle = load_bundle(settings.bundle)
        runtime = build_runtime(settings.runtime, settings.device, settings.threads)
        engine = Engine(bundle, runtime, settings.session_bytes)
        points = measure_latency(bundle, engine)
        self.state = WorkerState(bundle, engine, file)
        file.ready(points, runtime.describe())

    def predict(self, x: object, **kwargs: object) -> object:
        """LitServe asks for one; the loop calls the engine instead."""
        raise AssertionError("SubnetLoop runs the subnets")


@dataclass(frozen=True)
class WorkerState:
    """What a worker keeps."""

    bundle: Bundle
    engine: Engine
    file: WorkerFile


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
    """Take what waits, group it by subnet, run the most urgent group first.

    While nothing waits, sessions for the answers not built yet are built, one at a time, so that
    soon no budget is new.
    """

    def __call__(
        self,
        lit_api: litserve.LitAPI,
        device: str,
        worker_id: int,
        request_queue: Queue[Any],
        transport: MessageTransport,
        workers_setup_status: dict[int, str],
        callback_runner: CallbackRunner,
    ) -> None:
        assert isinstance(lit_api, ClassifyApi)
        state, settings = lit_api.state, lit_api.settings
        unbuilt = list(state.bundle.archs()) if settings.prebuild else []
        said = _Said(state)
        while True:
            said.keep_up(at_once=not unbuilt)
            try:
                waiting = self._take(request_queue, settings.max_batch, wait=not unbuilt)
            except (EOFError, ConnectionError):
                return  # the manager process is gone: the server has stopped
            if waiting:
                self._start(transport, waiting)
                for group in by_subnet(waiting):
                    self._run(state, transport, group)
            elif unbuilt:
                evictions = state.engine.evictions
                state.engine.session(unbuilt.pop())
                if state.engine.evictions > evictions:
                    unbuilt.clear()  # memory is full; building more would only push others out

    def _take(self, queue: Queue[Any], most: int, *, wait: bool) -> list[_Waiting]:
        waiting: list[_Waiting] = []
        try:
            item = queue.get(timeout=1.0) if wait else queue.get_nowait()
            while True:
                response_queue_id, uid, _, job = item
                waiting.append(_Waiting(response_queue_id, uid, job))
                if len(waiting) == most:
                    break
                item = queue.get_nowait()
        except Empty:
            pass
        return waiting

    def _start(self, transport: MessageTransport, waiting: list[_Waiting]) -> None:
        """Tell the HTTP process which worker has these, so that it knows if that worker dies."""
        for one in waiting:
            self.put_response(
                transport,
                one.response_queue_id,
                one.uid,
                (),
                cast("LitAPIStatus", LitAPIStatus.START),  # a class of plain strings
                LoopResponseType.REGULAR,
            )

    def _run(self, state: WorkerState, transport: MessageTransport, group: list[_Waiting]) -> None:
        now = time.monotonic()
        for late in [one for one in group if one.job.deadline_s < now]:
            queue_ms = 1000 * (now - late.job.sent_s)
            self._reply(transport, late, Done(None, queue_ms, 0.0, 0.0, 0))
        group = [one for one in group if one.job.deadline_s >= now]
        if not group:
            return
        arch = state.bundle.space.from_indices(group[0].job.indices)
        try:
            pixels = np.stack([one.job.pixels for one in group])
            inference = state.engine.run(arch, state.bundle.preprocess.normalize(pixels))
        # Whatever a runtime raises concerns this subnet: the group is told, the worker goes on.
        except Exception as error:  # noqa: BLE001
            for one in group:
                self._reply(transport, one, Failed(f"{type(error).__name__}: {error}"))
            return
        for one, logits in zip(group, inference.logits, strict=True):
            queue_ms = 1000 * (now - one.job.sent_s)
            done = Done(logits, queue_ms, inference.infer_ms, inference.build_ms, len(group))
            self._reply(transport, one, done)

    def _reply(self, transport: MessageTransport, one: _Waiting, answer: Done | Failed) -> None:
        self.put_response(
            transport,
            one.response_queue_id,
            one.uid,
            answer,
            cast("LitAPIStatus", LitAPIStatus.OK),
            LoopResponseType.REGULAR,
        )


class _Said:
    """Keeps the list of resident subnets in the worker's file true, but not at every step."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._changes, self._next_s = -1, 0.0

    def keep_up(self, *, at_once: bool) -> None:
        engine, space = self._state.engine, self._state.bundle.space
        changes = engine.builds + engine.evictions
        if changes != self._changes and (at_once or time.monotonic() >= self._next_s):
            self._state.file.resident([space.arch_id(arch) for arch in engine.resident()])
            self._changes, self._next_s = changes, time.monotonic() + 0.5


def by_subnet(waiting: list[_Waiting]) -> list[list[_Waiting]]:
    """Groups of one subnet each; the group with the earliest deadline first."""
    groups: dict[tuple[int, ...], list[_Waiting]] = {}
    for one in sorted(waiting, key=lambda one: one.job.deadline_s):
        groups.setdefault(one.job.indices, []).append(one)
    return list(groups.values())


def arch_indices(bundle: Bundle, arch: Arch) -> tuple[int, ...]:
    """An arch as plain integers, for a job."""
    return tuple(int(index) for index in bundle.space.indices(arch))
