"""A claim on a run's folder: one process at a time trains in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows, where nothing is claimed
    fcntl = None

LOCK_NAME = "lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder if it is not there, and let no other process claim it meanwhile.

    The system ends a claim with its process, however that ends. A new folder in which nothing was
    written is removed. Raises ValueError for a folder that another process has claimed.
    """
    path, is_new = folder / LOCK_NAME, not folder.exists()
    with _locked(path):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open, and a folder may hold a run
                path.unlink()
                if is_new:
                    folder.rmdir()


def _locked(path: Path) -> TextIO:
    """The open file that holds the lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        if _lock(file):
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()  # the process that had it has just removed it
            continue
        with file:
            file.seek(0)
            raise ValueError(
                f"{path.parent} is being trained by process {file.read().strip()}: wait until that "
                "has ended, or name another folder with --out"
            )
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _lock(file: TextIO) -> bool:
    """Whether the file is this process's now; also where the system knows no such locks."""
    if fcntl is None:
        return True
    try:
        # not flock, whose locks pass on to processes that decode images and may live on
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
