"""Supervisor: keeps the server's processes running. A thread of the parent.

One that ends is started again: at once if it had come as far as serving, else after a pause that
grows with every attempt. A server whose processes will not start again ends: whatever runs it can
then start it elsewhere, while its clients would wait for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

import structlog

# The least time between two looks at whether processes stand still.
LOOK_S = 1.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
# In a row, over three quarters of a minute.
_ATTEMPTS = 10
_END_S = 10.0

_LOG = structlog.get_logger("shiftnas_serve.supervisor")


@dataclass(eq=False)
class Kept:
    """A process (of multiprocessing) that is to run, by what concerns its kind.

    ``start``: starts one; may raise. ``has_served``: whether one that ended had served before.
    ``lost``: called once for each that ended. ``is_silent``: whether one that runs should have been
    heard of and was not.
    """

    name: str
    process: Any
    start: Callable[[], Any]
    has_served: Callable[[Any], bool]
    lost: Callable[[Any], None]
    is_silent: Callable[[Any], bool] = lambda process: False
    failures: int = 0
    start_at_s: float = 0.0
    silent_looks: int = 0


class Supervisor:
    """Watches what it is given. ``give_up`` is called with a reason, once, when that is in vain."""

    def __init__(self, stall_s: float, give_up: Callable[[str], None]) -> None:
        self._stall_s, self._give_up = stall_s, give_up
        self._kept: list[Kept] = []
        self._look_at_s = 0.0
        self._given_up = False
        self._stopping = threading.Event()
        self._woken, self._wake = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self, kept: list[Kept]) -> None:
        """Begin to watch."""
        self._kept = kept
        self._thread.start()

    def stop(self) -> None:
        """When this returns nothing is started any more."""
        self._stopping.set()
        self._wake.send_bytes(b"x")
        if self._thread.ident is not None:
            self._thread.join(_END_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            # Whatever it was (a full disk), the next turn may go well. Nobody else would do this.
            except Exception:  # noqa: BLE001
                _LOG.exception("an error while processes were watched")
                self._stopping.wait(_FIRST_PAUSE_S)

    def _turn(self) -> None:
        now = time.monotonic()
        sentinels = [one.process.sentinel for one in self._kept if one.process is not None]
        pauses = [one.start_at_s - now for one in self._kept if one.process is None]
        wait([*sentinels, self._woken], timeout=max(min([LOOK_S, *pauses]), 0.0))
        look = time.monotonic() >= self._look_at_s
        if look:
            self._look_at_s = time.monotonic() + LOOK_S
        for one in self._kept:
            if self._stopping.is_set():
                return
            if look and one.process is not None:
                self._look(one)
            if one.process is not None and not one.process.is_alive():
                self._lost(one)
            if one.process is None and time.monotonic() >= one.start_at_s:
                self._start(one)

    def _look(self, one: Kept) -> None:
        # Looks are counted, not seconds: if this process stood still, too, as when a machine
        # sleeps, nobody is to blame.
        one.silent_looks = one.silent_looks + 1 if one.is_silent(one.process) else 0
        if one.silent_looks * LOOK_S > self._stall_s:
            _LOG.error("a process stands still; ending it", process=one.name, pid=one.process.pid)
            one.process.kill()
            one.process.join()

    def _lost(self, one: Kept) -> None:
        process, one.process = one.process, None
        process.join()
        one.silent_looks = 0
        how = {"process": one.name, "pid": process.pid, "exit_status": process.exitcode}
        _LOG.error("a process ended; starting another", **how)
        try:
            served = one.has_served(process)
        finally:
            one.lost(process)
        if served:
            one.failures, one.start_at_s = 0, 0.0
        else:
            self._failed(one, "ended before it served")

    def _start(self, one: Kept) -> None:
        try:
            one.process = one.start()
        # Too many processes, no memory: that may pass.
        except Exception as error:  # noqa: BLE001
            _LOG.exception("a process could not be started", process=one.name)
            self._failed(one, f"could not be started: {error}")

    def _failed(self, one: Kept, how: str) -> None:
        one.failures += 1
        pause_s = min(_FIRST_PAUSE_S * 2 ** (one.failures - 1), _LONGEST_PAUSE_S)
        one.start_at_s = time.monotonic() + pause_s
        if one.failures >= _ATTEMPTS and not self._given_up:
            self._given_up = True
            self._give_up(f"{one.name} {how}, {one.failures} times in a row")
