"""Revisions: what an HTTP process answers with, and how it goes from one version to the next.

All that belongs to a version of the bundle (planner, labels, preprocessing, connections to workers,
routes) hangs on one ``Revision``. A request gets the current one at the door and keeps it, so that
no answer can mix two. ``Revisions`` follows what the run's folder says: it opens the revision that
is being prepared beside the current one, changes over in one step, and closes the old one when its
last request is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from models.bundle.folder import Bundle, load_bundle
from shiftnas_serve.classify import Classifier
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.planner import Planner
from shiftnas_serve.run_folder import Member, RunFolder
from shiftnas_serve.settings import Settings
from shiftnas_serve.status import is_draining, is_started, set_started
from shiftnas_serve.workers import Workers

_POLL_S = 0.25
_RETRY_S = 1.0
_BEAT_S = 0.5
# A new HTTP process takes connections when its workers are there, or after so long without them.
_START_S = 3.0

_LOG = structlog.get_logger("shiftnas_serve.revisions")


@dataclass(eq=False)
class Revision:
    """One version of the bundle as an HTTP process serves it. users: requests that it has now.

    ``bundle`` holds no weights; its copy at ``folder`` does.
    """

    number: int
    bundle: Bundle
    folder: Path
    planner: Planner
    workers: Workers
    classifier: Classifier
    routes: Sequence[BaseRoute] = ()
    document: Mapping[str, object] | None = None
    users: int = 0

    @property
    def model(self) -> dict[str, str]:
        """What answers name."""
        return {"name": self.bundle.name, "version": self.bundle.version}

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep it while a request needs it."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    async def close(self) -> None:
        """Give its connections and threads back."""
        await self.workers.stop()
        self.classifier.close()
        self.routes = ()  # they refer to this


class Revisions:
    """The revisions of an HTTP process. ``complete`` gives a new one its routes."""

    def __init__(
        self,
        files: RunFolder,
        settings: Settings,
        metrics: Metrics,
        complete: Callable[[Revision], None],
    ) -> None:
        self.files, self._settings, self._metrics = files, settings, metrics
        self._complete = complete
        self._held: dict[int, Revision] = {}
        self._failed: tuple[int, str] | None = None
        self._current: Revision | None = None
        self._said: Member | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._following = asyncio.Lock()
        self.draining = False

    @property
    def current(self) -> Revision:
        """The one that new requests get."""
        assert self._current is not None, "asked before start"
        return self._current

    @property
    def started(self) -> bool:
        """Whether the server has been complete: every HTTP process with all its workers."""
        if is_started(self.files.path):
            return True
        serving, members = self.files.state().serving, self.files.members()
        ready = all(one.serving == serving and serving in one.ready for one in members)
        own = self.current.number == serving and self.current.workers.all_ready
        complete = own and ready and len(members) >= self._settings.http_processes
        if complete:
            with contextlib.suppress(OSError):  # a full disk: it will be found again
                set_started(self.files.path)
        return complete

    @property
    def ready(self) -> bool:
        """Whether requests may come.

        First when the server has been complete; from then on while every HTTP process is there and
        has a worker. What one lost worker did is done by the others until it is replaced: to be
        taken out for that would give them nothing to do.
        """
        members = self.files.members()
        enough = len(members) >= self._settings.http_processes
        able = all(one.serving in one.able for one in members)
        return self.started and enough and able and self.current.workers.ready

    async def start(self) -> None:
        """Open what is served and begin to follow; call inside the event loop."""
        self._say()  # before the state is read: a reload waits for all that it sees
        self._tasks.append(asyncio.create_task(self._beat_on()))
        while self._current is None:
            state = self.files.state()
            try:
                self._current = self._held[state.serving] = await self._open(state.serving)
            except (ValueError, OSError):  # it was replaced and removed meanwhile
                if self.files.state().serving == state.serving:
                    raise
        end = time.monotonic() + _START_S
        await self.follow()
        while not self._takes_requests and time.monotonic() < end:
            await asyncio.sleep(0.01)
            await self.follow()
        self._tasks.append(asyncio.create_task(self._follow_on()))

    def drain(self) -> None:
        """Answers from now on tell clients to connect anew."""
        self.draining = True

    async def stop(self) -> None:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for revision in self._held.values():
            await revision.close()
        self.files.forget_member(os.getpid())

    @property
    def _takes_requests(self) -> bool:
        workers = self.current.workers
        return workers.all_ready or (workers.ready and is_started(self.files.path))

    async def _follow_on(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self.follow()
            # Whatever it was (a full disk), the next turn may go well; requests go on meanwhile.
            except Exception:  # noqa: BLE001
                _LOG.exception("cannot follow the run's folder")
                await asyncio.sleep(_RETRY_S)

    async def _beat_on(self) -> None:
        # Apart from following, which waits while a bundle is read: that is no standing still.
        while True:
            self.files.beat()
            await asyncio.sleep(_BEAT_S)

    async def follow(self) -> None:
        """Do what the run's folder says."""
        async with self._following:
            await self._follow()

    async def _follow(self) -> None:
        self.draining = is_draining(self.files.path)
        state = self.files.state()
        wanted = state.wanted
        for number in sorted(wanted - self._held.keys()):
            if self._failed is not None and self._failed[0] == number:
                continue
            try:
                self._held[number] = await self._open(number)
            except (ValueError, OSError) as error:
                self._failed = (number, str(error))
        for number, revision in self._held.items():
            if revision.workers.failure is not None and number != state.serving:
                self._failed = (number, revision.workers.failure)
        if state.serving != self.current.number and state.serving in self._held:
            old, self._current = self.current, self._held[state.serving]
            _LOG.info("serving", **self.current.model, was=old.bundle.version)
        for number in self._held.keys() - wanted - {self.current.number}:
            if self._held[number].users == 0:
                await self._held.pop(number).close()
                tidy_memory()
        self._say()

    def _say(self) -> None:
        ready = (n for n, revision in self._held.items() if revision.workers.all_ready)
        able = (n for n, revision in self._held.items() if revision.workers.ready)
        member = Member(
            os.getpid(),
            None if self._current is None else self._current.number,
            tuple(sorted(ready)),
            tuple(sorted(self._held)),
            self._failed,
            tuple(sorted(able)),
        )
        if member != self._said:
            self.files.set_member(member)
            self._said = member

    async def _open(self, number: int) -> Revision:
        folder, settings = self.files.copy(number), self._settings

        def load() -> tuple[Bundle, Planner]:
            bundle = load_bundle(folder, weights=False)
            return bundle, Planner(bundle, settings.default_flops)

        bundle, planner = await asyncio.to_thread(load)
        path = self.files.path
        workers = Workers(path, number, settings.workers, self._metrics, settings.stall_s)
        classifier = Classifier(bundle, planner, workers, self._metrics, settings, path)
        revision = Revision(number, bundle, folder, planner, workers, classifier)
        self._complete(revision)
        await workers.start()
        return revision


def tidy_memory() -> None:
    """Let what has gone go, also where it was frozen (``host``) and refers to itself."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class RevisionRoute(BaseRoute):
    """All routes that belong to a version: those of the current revision."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """The best match among the current revision's routes."""
        revision = self._revisions.current
        best: tuple[Match, Scope] = (Match.NONE, {})
        for route in revision.routes:
            match, child = route.matches(scope)
            if match == Match.NONE or (match == Match.PARTIAL and best[0] == Match.PARTIAL):
                continue
            best = (match, {**child, "revision": revision, "revision_route": route})
            if match == Match.FULL:
                break
        return best

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the revision that was current when the request came."""
        with scope["revision"].used():
            await scope["revision_route"].handle(scope, receive, send)
