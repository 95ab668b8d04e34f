"""Worker: the process that runs subnets, hosted by LitServe.

``SubnetLoop`` replaces LitServe's loop and queue: jobs come from the HTTP processes (``inbox``),
wait (``waiting``), and run grouped by subnet in the order of deadlines. An error belongs to its
group of one subnet, never to the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import litserve
import numpy as np
import structlog
from litserve.loops.base import LitLoop

from models.arch import Arch
from models.bundle import Bundle, load_bundle
from shiftnas_serve.engine import Engine
from shiftnas_serve.frames import (
    Alive,
    Building,
    Cancel,
    Done,
    Failed,
    Frame,
    Hello,
    Job,
    Late,
    Open,
    Refused,
    Resident,
    pack,
)
from shiftnas_serve.inbox import Client, Inbox, socket_path
from shiftnas_serve.latency import LatencyTable, measure_ms
from shiftnas_serve.log import configure_log
from shiftnas_serve.planner import latency_steps
from shiftnas_serve.run_folder import RunFolder
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.selection import Selection
from shiftnas_serve.settings import Settings
from shiftnas_serve.waiting import Group, Waiter, Waiting

_MEASURED_SUBNETS = 5
_IDLE_S = 1.0
_LOADING_POLL_S = 0.02
_ALIVE_S = 1.0

_LOG = structlog.get_logger("shiftnas_serve.worker")


class ClassifyApi(litserve.LitAPI):
    """What LitServe starts in every worker process. Light to pickle; ``setup`` does the work."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(api_path="/classify", loop=SubnetLoop())
        self.settings = settings
        self.folder = folder

    def setup(self, device: str) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to pass on
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # so is a reload
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent(self.folder)
        configure_log(self.settings.log_level, self.settings.log_format)
        files = RunFolder(self.folder)
        self.revision = files.state().serving
        self.loaded = load_revision(files.copy(self.revision), self.settings)

    def predict(self, x: object, **kwargs: object) -> object:
        """LitServe asks for one; the loop calls the engine instead."""
        raise AssertionError("SubnetLoop runs the subnets")


@dataclass(frozen=True)
class Loaded:
    """A bundle that is ready to run: its pinned subnets are built, its latency is measured."""

    bundle: Bundle
    engine: Engine
    selection: Selection
    runtime: dict[str, str]


def load_revision(folder: Path, settings: Settings, *, busy: bool = False) -> Loaded:
    """Load and prepare a bundle. Raises what is wrong with it or with the runtime.

    ``busy``: whether this process runs another meanwhile.
    """
    bundle = load_bundle(folder)
    runtime = build_runtime(settings.runtime, settings.device, settings.threads)
    pinned = [bundle.answer(budget) for budget in settings.pinned_flops]
    engine = Engine(bundle, runtime, settings.session_bytes, pinned)
    for arch in pinned:
        engine.session(arch)
    # Beside other work the shortest of several runs is closest to what one takes alone.
    points = measure_latency(bundle, engine, min if busy else statistics.median)
    table = LatencyTable.of(points)
    selection = Selection(bundle, latency_archs(bundle), table, engine.is_resident)
    return Loaded(bundle, engine, selection, runtime.describe())


def measure_latency(
    bundle: Bundle, engine: Engine, pick: Callable[[Sequence[float]], float] = statistics.median
) -> tuple[tuple[float, float], ...]:
    """(FLOPs, milliseconds) of one image for a handful of subnets between the ends."""
    low, high = bundle.min_flops, bundle.max_flops
    budgets = [low + (high - low) * i / (_MEASURED_SUBNETS - 1) for i in range(_MEASURED_SUBNETS)]
    points = {}
    for arch in dict.fromkeys(bundle.answer(budget) for budget in budgets):
        side = bundle.space.resolution(arch)
        images = np.zeros((1, 3, side, side), np.float32)
        session, _ = engine.session(arch)
        ms = measure_ms(lambda: session.run(images), 0.05, pick=pick)  # noqa: B023
        points[float(bundle.space.flops(arch))] = ms
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
        inbox = Inbox(socket_path(lit_api.folder, int(os.environ["LITSERVE_WORKER_ID"])))
        try:
            runners = Runners(inbox, RunFolder(lit_api.folder), lit_api.settings)
            runners.run(lit_api.revision, lit_api.loaded)
        finally:
            inbox.close()


class Runners:
    """The loop, and the revisions that it runs: one, and during a reload two.

    A revision is loaded in a thread when an HTTP process opens it, and dropped when no HTTP process
    has it open and it is not the one that is served.
    """

    def __init__(self, inbox: Inbox, files: RunFolder, settings: Settings) -> None:
        self._inbox, self._files, self._settings = inbox, files, settings
        self._runners: dict[int, SubnetRunner] = {}
        self._loading: dict[int, Future[Loaded]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._alive_at_s = 0.0

    def run(self, revision: int, loaded: Loaded) -> None:
        """Until SIGTERM came and the last HTTP process has gone: what is in flight is finished."""
        ending = False

        def end(number: int, frame: FrameType | None) -> None:
            nonlocal ending
            ending = True
            if not self._inbox.connected:
                raise SystemExit(0)

        signal.signal(signal.SIGTERM, end)
        self._runners[revision] = SubnetRunner(revision, loaded, self._inbox, self._settings)
        while not ending or self._inbox.connected:
            runners = list(self._runners.values())
            idle = not any(runner.waiting or runner.unbuilt for runner in runners)
            for runner in runners:
                runner.say_resident(at_once=idle)
            timeout_s = (_LOADING_POLL_S if self._loading else _IDLE_S) if idle else 0.0
            self._receive(timeout_s)
            self._end_loading()
            # Each revision once, so that none waits for the other for longer than one batch.
            ran = [runner.run_group() for runner in self._runners.values()]
            if any(ran):
                self._say_alive()
            else:
                for runner in self._runners.values():
                    if runner.unbuilt:
                        runner.build_one()
                        break

    def _receive(self, timeout_s: float) -> None:
        for client, frame in self._inbox.receive(timeout_s):
            match frame:
                case Open(revision):
                    client.revision = revision
                    self._open(client, revision)
                case Job():
                    self._runner_of(client).waiting.add(client, frame)
                case Cancel():
                    self._runner_of(client).waiting.cancel(client, frame.id)
        if self._inbox.lost:
            while self._inbox.lost:
                client = self._inbox.lost.pop()
                if client.revision in self._runners:
                    self._runners[client.revision].waiting.forget(client)
            self._drop_unused()

    def _runner_of(self, client: Client) -> SubnetRunner:
        assert client.revision is not None, "a connection begins with Open"
        return self._runners[client.revision]  # there until its connections are closed

    def _open(self, client: Client, revision: int) -> None:
        if revision in self._runners:
            self._runners[revision].greet(client)
        elif revision not in self._loading:
            folder = self._files.copy(revision)
            self._loading[revision] = self._loader.submit(
                load_revision, folder, self._settings, busy=True
            )

    def _end_loading(self) -> None:
        for revision in [one for one, future in self._loading.items() if future.done()]:
            future = self._loading.pop(revision)
            error = future.exception()
            if error is not None:
                _LOG.error("load failed", revision=revision, error=repr(error))
                reason = str(error) if isinstance(error, ValueError) else repr(error)
                for client in self._inbox.clients(revision):
                    self._inbox.send(client, pack(Refused(reason)))
                    self._inbox.drop(client)
                continue
            runner = SubnetRunner(revision, future.result(), self._inbox, self._settings)
            self._runners[revision] = runner
            for client in self._inbox.clients(revision):
                runner.greet(client)
            self._drop_unused()

    def _drop_unused(self) -> None:
        for revision in list(self._runners):
            if self._inbox.clients(revision) or revision == self._files.state().serving:
                continue
            self._runners.pop(revision).close()
            _LOG.info("revision dropped", revision=revision)
            release_memory()

    def _say_alive(self) -> None:
        # An HTTP process whose jobs must wait for others' must not think that nothing moves.
        if time.monotonic() >= self._alive_at_s:
            self._alive_at_s = time.monotonic() + _ALIVE_S
            self._inbox.tell_all(Alive())


def release_memory() -> None:
    """Give back to the system what is free: a revision's arrays are large, and were many."""
    with contextlib.suppress(OSError, AttributeError):  # a libc without it
        ctypes.CDLL(None).malloc_trim(0)


class SubnetRunner:
    """One revision: its sessions, the jobs that wait for them, the sessions still to build."""

    def __init__(self, revision: int, loaded: Loaded, inbox: Inbox, settings: Settings) -> None:
        self.revision = revision
        self._bundle, self._engine, self._inbox = loaded.bundle, loaded.engine, inbox
        self._selection, self._max_batch = loaded.selection, settings.max_batch
        self._hello = Hello(os.getpid(), loaded.selection.latency.points, loaded.runtime)
        self.waiting = Waiting()
        self.unbuilt = expected_archs(loaded.bundle) if settings.prebuild else []
        self._said: frozenset[str] = frozenset()
        self._changes, self._say_at_s = -1, 0.0

    def greet(self, client: Client) -> None:
        """Tell an HTTP process that this revision is ready, and what is resident."""
        self._inbox.send(client, pack(self._hello) + pack(Resident(tuple(self._said), ())))

    def close(self) -> None:
        """Give the sessions back."""
        self._engine.close()

    def run_group(self) -> bool:
        """Run the jobs of the most urgent subnet; whether there were any."""
        group = self.waiting.take(time.monotonic(), self._selection, self._max_batch)
        if group is not None:
            self._run(group)
        return group is not None

    def build_one(self) -> None:
        """Build a session that somebody will probably ask for."""
        evictions = self._engine.evictions
        self._inbox.tell_all(Building())
        _, build_ms = self._engine.session(self.unbuilt.pop())
        self._selection.built(build_ms)
        if self._engine.evictions > evictions:
            self.unbuilt.clear()  # memory is full; more would only push others out

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
        if done.build_ms:
            self._selection.built(done.build_ms)
        latency = self._selection.latency.observed(flops, turn_ms / count, images=count)
        self._selection.latency = latency

    def _reply(self, answers: Iterable[tuple[Waiter, Frame]]) -> None:
        by_client: dict[Client, list[bytes]] = {}
        for waiter, answer in answers:
            assert isinstance(waiter.client, Client)
            by_client.setdefault(waiter.client, []).append(pack(answer))
        for client, frames in by_client.items():
            self._inbox.send(client, b"".join(frames))

    def say_resident(self, *, at_once: bool) -> None:
        """Tell the HTTP processes which sessions came and went."""
        # Not at every step: a list is long, and nothing depends on its being true to the moment.
        changes = self._engine.builds + self._engine.evictions
        if changes == self._changes or not (at_once or time.monotonic() >= self._say_at_s):
            return
        self._changes, self._say_at_s = changes, time.monotonic() + 0.25
        now = frozenset(self._bundle.space.arch_id(arch) for arch in self._engine.resident())
        change = Resident(tuple(now - self._said), tuple(self._said - now))
        self._inbox.tell_all(change, self.revision)
        self._said = now
