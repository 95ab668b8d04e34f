"""RunFolder: which version of the bundle this server serves, as files that its processes share.

Every version that is served gets a number, its revision, and a copy of its bundle in the run's
folder, so that all processes, those that start later included, read the same bytes whatever happens
to the original. ``state`` says which revision is served and which is being prepared; each HTTP
process says in a file of its own how far it is. Files are replaced in one step, never rewritten.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.bundle.files import GENERATOR, MANIFEST, STATISTICS, SUPERNET, TEMPLATE
from models.bundle.folder import Bundle, load_bundle

_FILES = (MANIFEST, SUPERNET, GENERATOR, STATISTICS, TEMPLATE)


@dataclass(frozen=True)
class State:
    """serving: the revision that is served; source: where its bundle lay.

    preparing: the revision that is about to follow, for as long as the process ``by`` lives.
    last: the highest number that was ever given.
    """

    serving: int
    source: str
    last: int
    preparing: int | None = None
    by: int = 0

    @property
    def wanted(self) -> set[int]:
        """The revisions that every HTTP process should hold."""
        if self.preparing is not None and is_alive(self.by):
            return {self.serving, self.preparing}
        return {self.serving}


@dataclass(frozen=True)
class Member:
    """What an HTTP process says of itself.

    serving: the revision that new requests get; able: those for which it has a worker; ready: those
    for which it has all of them; holds: those that it answers with or may; failed: one that it
    could not get ready, and why.
    """

    pid: int
    serving: int | None = None
    ready: tuple[int, ...] = ()
    holds: tuple[int, ...] = ()
    failed: tuple[int, str] | None = None
    able: tuple[int, ...] = ()


class BeingReloaded(Exception):
    """Another reload is under way."""


class RunFolder:
    """The files, by what they mean."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = path / "http"
        self._state = path / "state"
        self.metrics = path / "metrics"
        """Where processes count (``tallies``)."""

    def create(self, source: Path) -> Bundle:
        """Begin with a first revision. Raises ValueError as ``take`` does."""
        self._members.mkdir()
        self.metrics.mkdir()
        bundle = self.take(source, 1)
        self.set_state(State(serving=1, source=str(source), last=1))
        return bundle

    def copy(self, revision: int) -> Path:
        """The folder of a revision's copy of its bundle."""
        return self.path / f"bundle-{revision}"

    def take(self, source: Path, revision: int) -> Bundle:
        """Copy a bundle, check the copy. Raises ValueError naming what is wrong in ``source``.

        Nothing is left of a copy that is not good.
        """
        target = self.copy(revision)
        try:
            # resolved once: a link may be turned to another folder meanwhile
            self._copy_files(source.resolve(), target)
            return load_bundle(target)
        except OSError as error:
            self.discard(revision)
            where = error.filename or source
            raise ValueError(f"cannot copy bundle {source}: {where}: {error.strerror}") from None
        except ValueError as error:
            self.discard(revision)
            raise ValueError(str(error).replace(str(target), str(source))) from None

    def _copy_files(self, source: Path, target: Path) -> None:
        target.mkdir()
        for name in _FILES:
            # what is missing is for load_bundle to tell; so is what is no file at all
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)

    def discard(self, revision: int) -> None:
        """Remove a revision's copy."""
        shutil.rmtree(self.copy(revision), ignore_errors=True)

    def discard_unused(self) -> None:
        """Remove every copy that no process needs any more."""
        kept = self.state().wanted.union(*(member.holds for member in self.members()))
        for path in self.path.glob("bundle-*"):
            revision = int(path.name.removeprefix("bundle-"))
            if revision not in kept:
                self.discard(revision)

    def state(self) -> State:
        """What is served now."""
        return State(**json.loads(self._state.read_text()))

    def set_state(self, state: State) -> None:
        """Say what is served from now on."""
        _write(self._state, asdict(state))

    def members(self) -> list[Member]:
        """The HTTP processes that live."""
        found = []
        for path in self._members.iterdir():
            if path.name.isdecimal() and is_alive(int(path.name)):
                with contextlib.suppress(FileNotFoundError):
                    found.append(_member(json.loads(path.read_text())))
        return found

    def set_member(self, member: Member) -> None:
        """Say how far this HTTP process is."""
        _write(self._members / str(member.pid), asdict(member))

    def beat(self) -> None:
        """Say that this HTTP process still turns."""
        with contextlib.suppress(OSError):  # a folder that has gone, as when the parent was killed
            os.utime(self._members / str(os.getpid()))

    def silence_s(self, pid: int) -> float:
        """Seconds since an HTTP process was heard of; 0 for one that has not spoken yet."""
        try:
            return max(time.time() - (self._members / str(pid)).stat().st_mtime, 0.0)
        except FileNotFoundError:
            return 0.0

    def has_served(self, pid: int) -> bool:
        """Whether an HTTP process, alive or not, has come as far as answering requests."""
        try:
            said = _member(json.loads((self._members / str(pid)).read_text()))
        except FileNotFoundError:
            return False
        return said.serving is not None

    def forget_member(self, pid: int) -> None:
        """An HTTP process has ended."""
        (self._members / str(pid)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def one_reload(self) -> Iterator[None]:
        """Hold the one place that a reload has. Raises BeingReloaded. A death gives it back."""
        with (self.path / "reload.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BeingReloaded from None
            yield

    def once(self, event: str) -> bool:
        """Whether this process is the first to name an event, which several may notice."""
        try:
            (self.path / event).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Note where this process is; if it dies there the note stays (``deaths``)."""
        path = self.path / place
        try:
            with path.open("ab") as file:
                file.write(b"x")
        except OSError:  # a full disk: no note
            yield
            return
        try:
            yield
        finally:
            os.truncate(path, path.stat().st_size - 1)

    def deaths(self, place: str) -> int:
        """How many processes died there, one at a time."""
        path = self.path / place
        return path.stat().st_size if path.exists() else 0


def _member(document: dict[str, Any]) -> Member:
    failed = document["failed"]
    return Member(
        document["pid"],
        document["serving"],
        tuple(document["ready"]),
        tuple(document["holds"]),
        None if failed is None else (failed[0], failed[1]),
        tuple(document["able"]),
    )


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write(path: Path, document: object) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document))
    partial.replace(path)
