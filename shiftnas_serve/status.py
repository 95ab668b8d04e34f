"""Status: what the server's processes tell each other, as small files in a folder of this run.

A worker holds a lock on its file for as long as it lives: the kernel drops the lock however the
worker ends, kill -9 included, so the HTTP process sees a death within one poll. (A process id
proves nothing here: a dead child keeps its own until the parent collects it.)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_DRAINING = "draining"


@dataclass(frozen=True)
class WorkerStatus:
    """Of one worker: whether it lives, and what it said when it was ready (None: not yet)."""

    alive: bool
    pid: int | None
    latency_points: tuple[tuple[float, float], ...] | None
    runtime: dict[str, str]

    @property
    def ready(self) -> bool:
        return self.alive and self.latency_points is not None


class WorkerFile:
    """A worker's side. Keep the object: the lock goes with it."""

    def __init__(self, folder: Path, worker_id: int) -> None:
        self._path = _path(folder, worker_id)
        self._path.touch()
        self._file: IO[str] = self._path.open("r+", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate()  # what the worker before this one said
        self._write({"pid": os.getpid()})

    def ready(
        self, latency_points: tuple[tuple[float, float], ...], runtime: dict[str, str]
    ) -> None:
        """Say that requests may come, how long subnets take, and what runs them."""
        self._write({"pid": os.getpid(), "latency_points": latency_points, "runtime": runtime})

    def resident(self, subnet_ids: Sequence[str]) -> None:
        """Say which subnets have a session now."""
        path = _resident_path(self._path)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(subnet_ids), encoding="utf-8")
        partial.replace(path)

    def _write(self, document: dict[str, object]) -> None:
        # One write and no truncation before it: a reader never finds half a document. What is
        # left of a longer one follows the end of the line.
        self._file.seek(0)
        self._file.write(json.dumps(document) + "\n")
        self._file.flush()


def read_worker(folder: Path, worker_id: int) -> WorkerStatus:
    """The HTTP process's side."""
    dead = WorkerStatus(False, None, None, {})
    try:
        with _path(folder, worker_id).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.readline()
            else:
                return dead  # nobody holds the lock
    except FileNotFoundError:
        return dead
    try:
        document = json.loads(text)
    except ValueError:  # the lock is held and nothing is written yet: starting
        return WorkerStatus(True, None, None, {})
    points = document.get("latency_points")
    return WorkerStatus(
        True,
        document["pid"],
        None if points is None else tuple((float(f), float(ms)) for f, ms in points),
        document.get("runtime", {}),
    )


def read_resident(folder: Path, worker_id: int) -> list[str]:
    """Ids of the subnets that a worker last said it has a session for."""
    try:
        return list(json.loads(_resident_path(_path(folder, worker_id)).read_text("utf-8")))
    except FileNotFoundError:
        return []


def set_draining(folder: Path) -> None:
    """From now on /readyz says 503."""
    (folder / _DRAINING).touch()


def is_draining(folder: Path) -> bool:
    """Whether the server is about to stop."""
    return (folder / _DRAINING).exists()


def _resident_path(path: Path) -> Path:
    return path.with_name(f"resident-{path.name}")


def _path(folder: Path, worker_id: int) -> Path:
    return folder / f"worker-{worker_id}.json"
