"""WorkerProcess: the process that runs subnets, hosted by LitServe, and its loop.

``SubnetLoop`` replaces LitServe's loop and queue: jobs come from the HTTP processes (``inbox``) and
go to the ``SubnetRunner`` of their revision (``worker``).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import litserve
import structlog
from litserve.loops.base import LitLoop

from shiftnas_serve.frames import Alive, Cancel, Dropped, Job, Open, Refused, pack
from shiftnas_serve.inbox import Client, Inbox, socket_path
from shiftnas_serve.log import configure_log
from shiftnas_serve.run_folder import RunFolder
from shiftnas_serve.settings import Settings
from shiftnas_serve.signals import end_with_parent
from shiftnas_serve.worker import Loaded, SubnetRunner, load_revision

_IDLE_S = 1.0
_LOADING_POLL_S = 0.02
_ALIVE_S = 1.0
_PREBUILD_DEATHS = 2

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
        os.nice(self.settings.worker_nice)  # before there are threads, which inherit it
        configure_log(self.settings.log_level, self.settings.log_format)
        files = RunFolder(self.folder)
        self.revision = files.state().serving
        self._loaded: Loaded | None = load_revision(files.copy(self.revision), self.settings)

    def hand_over(self) -> Loaded:
        """What ``setup`` has loaded; nothing is kept here, where it would outlive a reload."""
        loaded, self._loaded = self._loaded, None
        assert loaded is not None, "handed over already"
        return loaded

    def predict(self, x: object, **kwargs: object) -> object:
        """LitServe asks for one; the loop calls the engine instead."""
        raise AssertionError("SubnetLoop runs the subnets")


class SubnetLoop(LitLoop):
    """Read what came, run the most urgent group, again.

    While nothing waits, sessions for the answers not built yet are built, one at a time, so that
    soon no budget is new.
    """

    def __call__(self, lit_api: litserve.LitAPI, device: str, *litserves_own: object) -> None:
        assert isinstance(lit_api, ClassifyApi)
        inbox = Inbox(socket_path(lit_api.folder, int(os.environ["LITSERVE_WORKER_ID"])))
        try:
            place = f"prebuild-{os.environ['LITSERVE_WORKER_ID']}"
            runners = Runners(inbox, RunFolder(lit_api.folder), lit_api.settings, place)
            runners.add(lit_api.revision, lit_api.hand_over())
            runners.run()
        finally:
            inbox.close()


class Runners:
    """The loop, and the revisions that it runs: one, and during a reload two.

    A revision is loaded in a thread when an HTTP process opens it, and dropped when no HTTP process
    has it open and it is not the one that is served. ``place``: where this worker is, for the run's
    folder, while it prebuilds.
    """

    def __init__(self, inbox: Inbox, files: RunFolder, settings: Settings, place: str) -> None:
        self._place = place
        self._inbox, self._files, self._settings = inbox, files, settings
        self._runners: dict[int, SubnetRunner] = {}
        self._loading: dict[int, Future[Loaded]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._alive_at_s = 0.0

    def add(self, revision: int, loaded: Loaded) -> None:
        """Begin to run a revision."""
        runner = SubnetRunner(revision, loaded, self._inbox, self._settings)
        self._runners[revision] = runner
        if runner.unbuilt and self._files.deaths(self._place) >= _PREBUILD_DEATHS:
            # no memory, or a runtime that crashes: the next one would end there, too
            _LOG.error("no prebuilding: workers died of it", deaths=_PREBUILD_DEATHS)
            runner.unbuilt.clear()
        for client in self._inbox.clients(revision):
            runner.greet(client)

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
            idle = not any(runner.waiting or runner.unbuilt for runner in self._runners.values())
            timeout_s = (_LOADING_POLL_S if self._loading else _IDLE_S) if idle else 0.0
            self._say_resident(at_once=idle)
            self._receive(timeout_s)
            self._end_loading()
            self._turn()

    def _turn(self) -> None:
        # Each revision once, so that none waits for the other for longer than one batch.
        ran = [runner.run_group() for runner in self._runners.values()]
        if any(ran):
            self._say_alive()
            return
        for runner in self._runners.values():
            if runner.unbuilt:
                with self._files.at(self._place):
                    runner.build_one()
                return

    def _say_resident(self, *, at_once: bool) -> None:
        for runner in self._runners.values():
            runner.say_resident(at_once=at_once)

    def _receive(self, timeout_s: float) -> None:
        for client, frame in self._inbox.receive(timeout_s):
            match frame:
                case Open(revision):
                    client.revision = revision
                    self._open(client, revision)
                case Job():
                    self._runner_of(client).waiting.add(client, frame)
                case Cancel(identity):
                    # one that runs now, or has run, gets its answer nevertheless
                    if self._runner_of(client).waiting.cancel(client, identity):
                        self._inbox.send(client, pack(Dropped(identity)))
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
            self.add(revision, future.result())
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
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a libc without it
        ctypes.CDLL(None).malloc_trim(0)
