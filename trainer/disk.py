"""Writing files so that a full disk is one line that names the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path, then: str = "make room and resume the run") -> Iterator[None]:
    """Around what writes ``path``. Raises ValueError, which names it, where the system refuses."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write {path}: {reason(error)}; {then}") from error


def write_whole(path: Path, text: str) -> None:
    """Write a small text file: whole, or not at all. Raises ValueError as ``writing`` does."""
    partial = path.with_suffix(".partial")
    try:
        with writing(path, "make room"):
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except ValueError:
        partial.unlink(missing_ok=True)
        raise


def reason(error: BaseException) -> str:
    """What the system said: torch's own error hides it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Of what an error says."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
