"""Writing files so that a disk that refuses is one line that names the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.bundle.disk import refused


@contextmanager
def writing(path: Path, then: str = "resume the run") -> Iterator[None]:
    """Around what writes ``path``. Raises ValueError, which names it, where the system refuses.

    ``then``: what to do once the reason is gone.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(refused(path, error, then)) from error


def write_whole(path: Path, text: str) -> None:
    """Write a small text file: whole, or not at all. Raises ValueError as ``writing`` does."""
    partial = path.with_suffix(".partial")
    try:
        with writing(path, then=""):
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
