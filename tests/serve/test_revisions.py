"""What an HTTP process says of itself, in this process."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shiftnas_serve.revisions import Revisions
from shiftnas_serve.run_folder import Member, RunFolder
from shiftnas_serve.settings import Settings


def test_a_process_is_heard_of_while_it_reads_a_bundle(bundle_folder: Path, tmp_path, monkeypatch):
    """However long that takes: it does not stand still."""
    files = RunFolder(tmp_path)
    files.create(bundle_folder)
    nothing: Any = None
    revisions = Revisions(files, Settings(bundle=bundle_folder), nothing, lambda _: None)

    async def never(number: int) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(revisions, "_open", never)

    async def silent_first_and_then_heard() -> None:
        starting = asyncio.create_task(revisions.start())
        await asyncio.sleep(0)
        own = tmp_path / "http" / str(os.getpid())
        os.utime(own, (0, 0))
        assert files.silence_s(os.getpid()) > 1000
        end = time.monotonic() + 60
        while files.silence_s(os.getpid()) > 1000:
            assert time.monotonic() < end, "nothing was heard"
            await asyncio.sleep(0.05)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await revisions.stop()

    asyncio.run(silent_first_and_then_heard())


class FakeWorkers:
    """Of the revision that this process serves."""

    def __init__(self) -> None:
        self.ready = self.all_ready = False
        self.failure: str | None = None


def test_ready_is_first_when_all_are_there_and_then_while_every_process_has_a_worker(
    bundle_folder: Path, tmp_path
):
    files = RunFolder(tmp_path)
    files.create(bundle_folder)
    settings: Any = Settings(bundle=bundle_folder, http_processes=2)
    nothing: Any = None
    revisions = Revisions(files, settings, nothing, lambda _: None)
    workers = FakeWorkers()
    current: Any = SimpleNamespace(number=1, workers=workers)
    revisions._current, revisions._held = current, {1: current}

    def other(*, some: bool, every: bool) -> None:
        """What the other HTTP process, which lives as long as this one, says of itself."""
        ready, able = (1,) if every else (), (1,) if some else ()
        files.set_member(Member(os.getppid(), 1, ready, (1,), None, able))

    def own(*, some: bool, every: bool) -> None:
        workers.ready, workers.all_ready = some, every
        revisions._say()

    own(some=True, every=True)
    assert not revisions.ready, "the other process is not there"
    other(some=True, every=False)
    assert not revisions.ready, "it has not all workers"
    other(some=True, every=True)
    own(some=True, every=False)
    assert not revisions.ready, "nor has this one"
    assert not revisions.started
    own(some=True, every=True)
    assert revisions.ready
    # a worker is lost: the others take its requests
    own(some=True, every=False)
    other(some=True, every=False)
    assert revisions.ready
    own(some=False, every=False)
    assert not revisions.ready
    own(some=True, every=False)
    other(some=False, every=False)
    assert not revisions.ready
    other(some=True, every=True)
    assert revisions.ready
    assert revisions.started
    files.forget_member(os.getppid())
    assert not revisions.ready, "connections to a lost process would wait"
