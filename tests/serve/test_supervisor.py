"""Who keeps the processes running, with processes that are none."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shiftnas_serve import supervisor as module
from shiftnas_serve.supervisor import Kept, Supervisor


class FakeProcess:
    """Runs until it is killed. Its sentinel is a pipe, as multiprocessing's is."""

    def __init__(self, pid: int = 1, *, dead: bool = False) -> None:
        self.sentinel, self._end = os.pipe()
        self.pid, self.exitcode = pid, None
        self._alive = True
        if dead:
            self.kill()

    def is_alive(self) -> bool:
        return self._alive

    def kill(self) -> None:
        if self._alive:
            self._alive = False
            os.close(self._end)

    def join(self) -> None:
        assert not self._alive

    def close(self) -> None:
        self.kill()
        os.close(self.sentinel)


class Story:
    """What a supervisor did with a process. ``starts``: what its starts come to, in their order."""

    def __init__(self, *starts: Callable[[], Any], served: bool = False) -> None:
        self._starts, self._served = list(starts), served
        self.made: list[FakeProcess] = []
        self.lost: list[int] = []
        self.attempts = 0
        self.gave_up: list[str] = []
        self.silent = False
        self.losing: Callable[[], None] = lambda: None
        self.kept = Kept(
            "worker 0",
            self._started(),
            self.start,
            lambda process: self._served,
            self._lose,
            lambda process: self.silent,
        )

    def _lose(self, process: FakeProcess) -> None:
        self.lost.append(process.pid)
        self.losing()

    def _started(self) -> FakeProcess:
        self.made.append(FakeProcess(len(self.made)))
        return self.made[-1]

    def start(self) -> FakeProcess:
        self.attempts += 1
        if self._starts:
            self._starts.pop(0)()
        return self._started()


def cannot() -> None:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.fixture
def supervised(monkeypatch) -> Iterator[Callable[..., Story]]:
    """Begin to keep a process; everything happens soon."""
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.002)
    kept: list[tuple[Supervisor, Story]] = []

    def begin(story: Story, stall_s: float = 9.0) -> Story:
        supervisor = Supervisor(stall_s, story.gave_up.append)
        kept.append((supervisor, story))
        supervisor.start([story.kept])
        return story

    yield begin
    for supervisor, story in kept:
        supervisor.stop()
        attempts = story.attempts
        for process in story.made:
            process.close()
        assert story.attempts == attempts


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.002)


def test_one_that_ends_is_replaced_and_counted_once(supervised):
    story = supervised(Story(served=True))
    for times in (1, 2, 3):
        story.made[-1].kill()
        until(lambda: len(story.made) == times + 1)  # noqa: B023
        assert story.lost == list(range(times))
    assert story.kept.failures == 0
    assert not story.gave_up


def test_one_that_cannot_be_started_is_tried_again(supervised):
    """Too many processes: it passes."""
    story = supervised(Story(cannot, cannot, cannot, served=True))
    story.made[0].kill()
    until(lambda: len(story.made) == 2)
    assert (story.attempts, story.lost, story.gave_up) == (4, [0], [])


def test_pauses_between_attempts_grow_and_begin_anew_when_one_has_served(supervised, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 100.0)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 300.0)
    story = supervised(Story())
    pauses = []
    for _ in range(4):
        story.made[-1].kill()
        until(lambda: story.kept.process is None and story.kept.start_at_s > time.monotonic())
        assert len(story.made) == len(pauses) + 1, "it did not wait"
        pauses.append(round(story.kept.start_at_s - time.monotonic(), -1))
        story.kept.start_at_s = 0.0  # the time has come
        until(lambda: story.kept.process is not None)
    assert pauses == [100, 200, 300, 300]
    story._served = True
    story.made[-1].kill()
    until(lambda: len(story.made) == 6)


def test_a_server_whose_processes_never_serve_ends_and_says_why(supervised):
    story = supervised(Story(*[cannot] * 9))
    story.made[0].kill()
    until(lambda: bool(story.gave_up))
    assert story.gave_up == [
        "worker 0 could not be started: [Errno 11] Resource temporarily unavailable, "
        "10 times in a row"
    ]
    until(lambda: len(story.made) == 2)  # it is tried on, until the end
    story.made[-1].kill()
    until(lambda: len(story.made) == 3)
    assert len(story.gave_up) == 1


def test_an_error_ends_no_supervisor(supervised):
    """A full disk, where losses are counted."""
    story = Story(served=True)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    story.losing = full
    supervised(story)
    for times in (1, 2):
        story.made[-1].kill()
        until(lambda: len(story.made) == times + 1)  # noqa: B023


def test_one_that_stands_still_is_ended_and_replaced(supervised):
    story = supervised(Story(served=True), stall_s=0.1)
    story.silent = True
    until(lambda: story.lost == [0])
    story.silent = False
    until(lambda: len(story.made) == 2)


def test_looks_at_a_silent_process_are_counted_and_no_seconds(supervised, monkeypatch):
    """All stood still together: an hour later, it has been silent at one look."""
    story = supervised(Story(served=True), stall_s=0.1)
    looks = threading.Semaphore(0)
    really, ahead_s = time.monotonic, 0.0

    def silent(process: object) -> bool:
        nonlocal ahead_s
        if not story.silent:
            return False
        ahead_s, story.silent = 3600.0, False
        looks.release()
        return True

    story.kept.is_silent = silent
    monkeypatch.setattr(time, "monotonic", lambda: really() + ahead_s)
    story.silent = True
    assert looks.acquire(timeout=20)
    time.sleep(0.1)
    assert not story.lost
