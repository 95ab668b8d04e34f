"""Reload: from one bundle to another, or to a newer version of the same, while requests run.

1. the bundle is copied into the run's folder and checked there               (409, 422)
2. every HTTP process and every worker prepares it beside the one served      (422, 503, 504)
3. the run's folder names it: every HTTP process changes over
4. when all have, the answer goes out; when the old one's last request is answered, it is dropped

Until step 3 nothing has changed for anybody, and whatever fails is taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from shiftnas_serve.metrics import Metrics
from shiftnas_serve.planner import check_budgets
from shiftnas_serve.problem import Problem
from shiftnas_serve.revisions import Revisions
from shiftnas_serve.run_folder import BeingReloaded, Member, RunFolder, State
from shiftnas_serve.settings import Settings
from shiftnas_serve.signals import RELOAD

_POLL_S = 0.02
_TIDY_POLL_S = 0.5
# Engines of pinned subnets can take minutes to build.
_PREPARE_S = 900.0
_CHANGE_OVER_S = 30.0

_LOG = structlog.get_logger("shiftnas_serve.reload")


@dataclass(frozen=True)
class Reloaded:
    """What a reload did. changed: whether the version is another than before."""

    model: dict[str, str]
    previous: dict[str, str]
    changed: bool
    duration_ms: float

    def to_json(self) -> dict[str, object]:
        return {
            "status": "reloaded" if self.changed else "unchanged",
            "model": self.model,
            "previous": self.previous,
            "duration_ms": round(self.duration_ms, 1),
        }


class Reloader:
    """Reloads, one at a time in all HTTP processes of a server."""

    def __init__(
        self, files: RunFolder, revisions: Revisions, settings: Settings, metrics: Metrics
    ) -> None:
        self._files, self._revisions = files, revisions
        self._settings, self._metrics = settings, metrics
        self._tasks: set[asyncio.Task[None]] = set()

    async def reload(self, source: Path | None, request_id: str) -> Reloaded:
        """Serve the bundle at ``source`` (None: where the current one came from).

        Raises Problem: 409 another reload is under way, 422 the bundle is not good or cannot run
        here, 503 the server stops, 504 it took too long. The old version is served on then.
        """
        log = _LOG.bind(request_id=request_id, bundle=str(source or self._files.state().source))
        log.info("reload begun")
        try:
            with self._files.one_reload():
                done = await self._reload(source)
        except BeingReloaded:
            problem = Problem(
                409, "another reload is under way; try again", headers={"Retry-After": "5"}
            )
            self._count("busy")
            log.warning("reload refused", status=409, reason=problem.detail)
            raise problem from None
        except Problem as problem:
            self._count("refused")
            served = self._revisions.current.bundle.version
            log.warning(
                "reload refused", status=problem.status, reason=problem.detail, served=served
            )
            raise
        self._count("done" if done.changed else "unchanged")
        log.info("reload done", **done.to_json())
        return done

    def listen_to_the_parent(self) -> None:
        """Reload from the same path when it passes a SIGHUP on; the log has what comes of it."""

        async def reload() -> None:
            with contextlib.suppress(Problem):
                await self.reload(None, f"sighup-{uuid.uuid4().hex}")

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(RELOAD, lambda: self._keep(reload()))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself would let it go
        task.add_done_callback(self._tasks.discard)

    def _count(self, result: str) -> None:
        self._metrics.reloaded(result)

    async def _reload(self, source: Path | None) -> Reloaded:
        started = time.monotonic()
        files, previous = self._files, self._revisions.current.model
        files.discard_unused()
        before = files.state()
        source = source or Path(before.source)
        number = before.last + 1
        try:
            bundle = await asyncio.to_thread(files.take, source, number)
            check_budgets(bundle, self._settings)
            model = {"name": bundle.name, "version": bundle.version}
            del bundle  # with all its weights
        except ValueError as error:
            files.discard(number)
            raise Problem(422, f"{error}; {previous['version']} is served on") from None
        if model == previous:
            files.discard(number)
            files.set_state(replace(before, source=str(source)))
            return Reloaded(model, previous, False, 1000 * (time.monotonic() - started))
        files.set_state(replace(before, last=number, preparing=number, by=os.getpid()))
        try:
            await self._prepared(number)
        except BaseException:
            files.set_state(replace(before, last=number))
            self._tidy(number)
            raise
        files.set_state(State(serving=number, source=str(source), last=number))
        self._tidy(before.serving)
        await self._changed_over(number)
        return Reloaded(model, previous, True, 1000 * (time.monotonic() - started))

    async def _prepared(self, number: int) -> None:
        def ready(members: Sequence[Member]) -> bool:
            for member in members:
                if member.failed is not None and member.failed[0] == number:
                    raise Problem(422, f"it cannot be served here: {member.failed[1]}")
            if self._revisions.draining:
                raise Problem(503, "the server is stopping")
            enough = len(members) >= self._settings.http_processes
            return enough and all(number in member.ready for member in members)

        if not await self._until(ready, _PREPARE_S):
            raise Problem(504, f"not all workers could load it within {_PREPARE_S:g} s")

    async def _changed_over(self, number: int) -> None:
        def over(members: Sequence[Member]) -> bool:
            return all(member.serving == number for member in members)

        if not await self._until(over, _CHANGE_OVER_S):
            raise Problem(504, "it is served, but an HTTP process has not changed over yet")

    async def _until(self, condition: Callable[[Sequence[Member]], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self._revisions.follow()
            if condition(self._files.members()):
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def _tidy(self, number: int) -> None:
        """Remove a copy as soon as nobody needs it any more."""

        async def tidy() -> None:
            while any(number in member.holds for member in self._files.members()):
                await asyncio.sleep(_TIDY_POLL_S)
            self._files.discard(number)

        self._keep(tidy())
