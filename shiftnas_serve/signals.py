"""Signals: what the server's processes make of them, and of the death of the parent.

Only the parent decides. SIGTERM and SIGINT: stop in order. SIGHUP: reload; a stop where it says
that the terminal has gone in which the server was started. Supervisors and terminals signal all
processes of a service at once, so the others do nothing until the parent tells them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from shiftnas_serve.status import is_stopping, set_draining

RELOAD = signal.SIGUSR1
"""From the parent to one HTTP process."""
CLOSING_S = 0.5
"""How long kept connections are still answered when nothing new is taken any more."""


def obey_signals(folder: Path, drain_s: float, http_pids: Callable[[], Iterable[int]]) -> None:
    """In the parent. LitServe stops in order on a KeyboardInterrupt, and only on that."""
    parent = os.getpid()
    # who starts a server with nohup wants it to outlive the terminal
    tied = has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def stop(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)  # once is enough; a second must not cut it short
        set_draining(folder)
        time.sleep(drain_s)
        raise KeyboardInterrupt

    def hang_up(number: int, frame: FrameType | None) -> None:
        if tied and not has_terminal():
            stop(number, frame)
        for pid in http_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, RELOAD)
                return

    def forget() -> None:
        # forked children (HTTP process, manager); the HTTP process gets its own later
        if os.getpid() != parent:
            for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, RELOAD):
                signal.signal(one, signal.SIG_IGN)
            end_with_parent(folder)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, hang_up)
    os.register_at_fork(after_in_child=forget)


def has_terminal() -> bool:
    """Whether a terminal controls this process: not as a service, nor when it was hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def obey_the_parent_alone(folder: Path, drain: Callable[[], None]) -> None:
    """In an HTTP process, in the event loop and under uvicorn's signal handlers.

    When the parent says so, nothing new is taken; for ``CLOSING_S`` requests that come on kept
    connections are answered with ``Connection: close``, which ``drain`` brings about; then uvicorn
    closes what is idle and ends with its last request. A connection that is closed at once may have
    a request on its way.
    """
    uvicorns: Any = signal.getsignal(signal.SIGTERM)  # a method of its Server
    loop = asyncio.get_running_loop()
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            begun = True
            drain()
            for listener in getattr(uvicorns.__self__, "servers", ()):  # none before it has begun
                listener.close()
            loop.call_later(CLOSING_S, uvicorns, signal.SIGTERM, None)

    def stop(number: int, frame: FrameType | None) -> None:
        if is_stopping(folder):
            loop.call_soon_threadsafe(begin)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def end_with_parent(folder: Path) -> None:
    """End this process when its parent is gone, also after a kill -9 of the parent.

    ``folder``: the run's own, which the parent could not remove then.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
