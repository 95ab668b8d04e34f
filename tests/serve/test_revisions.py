"""What an HTTP process says of itself, in this process."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from shiftnas_serve.revisions import Revisions
from shiftnas_serve.run_folder import RunFolder
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
