"""What the parent makes of signals, in a process of its own without a server; and how an HTTP
process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftnas_serve import signals
from shiftnas_serve.status import is_draining, set_stopping
from tests.serve.conftest import ROOT

_PARENT = """
import fcntl, signal, sys, termios, time
from pathlib import Path
from shiftnas_serve.signals import obey_signals

folder, pid = Path(sys.argv[1]), int(sys.argv[4])
terminal, nohup = sys.argv[2] == "1", sys.argv[3] == "1"
if nohup:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if terminal:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
obey_signals(folder, 0.0, lambda: [2**22 + 7, pid])  # the first does not exist
(folder / "obeys").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(7)
"""


class Parent:
    """A process that obeys as the server's parent does, and one in the place of an HTTP process."""

    def __init__(self, folder: Path, *, terminal: bool, nohup: bool = False) -> None:
        self.master, slave = pty.openpty()
        self.http = subprocess.Popen(["sleep", "60"])
        choices = [str(int(terminal)), str(int(nohup)), str(self.http.pid)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PARENT, str(folder), *choices],
            cwd=ROOT,
            stdin=slave,
            start_new_session=True,
        )
        os.close(slave)
        while not (folder / "obeys").exists():
            assert self.process.poll() is None
            os.sched_yield()

    def hang_up(self) -> None:
        """The terminal goes."""
        os.close(self.master)
        self.master = -1

    def told_to_reload(self) -> bool:
        return self.http.wait(20) == -signals.RELOAD

    def end(self) -> None:
        for process in (self.process, self.http):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        if self.master >= 0:
            os.close(self.master)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Parent]]:
    made: list[Parent] = []
    yield made
    for one in made:
        one.end()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_hangup_is_a_reload_while_no_terminal_has_gone(tmp_path, started, terminal):
    started.append(Parent(tmp_path, terminal=terminal))
    started[0].process.send_signal(signal.SIGHUP)
    assert started[0].told_to_reload()
    assert started[0].process.poll() is None
    assert not is_draining(tmp_path)


def test_when_its_terminal_goes_a_server_stops_in_order(tmp_path, started):
    started.append(Parent(tmp_path, terminal=True))
    started[0].hang_up()
    assert started[0].process.wait(20) == 7
    assert is_draining(tmp_path)
    assert started[0].http.poll() is None


def test_with_nohup_it_outlives_its_terminal(tmp_path, started):
    started.append(Parent(tmp_path, terminal=True, nohup=True))
    started[0].hang_up()
    assert started[0].told_to_reload()
    assert started[0].process.poll() is None


def test_an_http_process_answers_on_kept_connections_before_it_ends(tmp_path, monkeypatch):
    """It listens no more, says that it drains, and only then lets uvicorn close what is idle."""
    monkeypatch.setattr(signals, "CLOSING_S", 0.05)
    done: list[str] = []

    class Listener:
        def close(self) -> None:
            done.append("listens no more")

    class Server:
        servers = [Listener(), Listener()]  # noqa: RUF012

        def handle_exit(self, number: int, frame: object) -> None:
            done.append(f"uvicorn got {number}")

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, Server().handle_exit)

    async def run() -> None:
        signals.obey_the_parent_alone(tmp_path, lambda: done.append("drains"))
        for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal, of a supervisor
            os.kill(os.getpid(), number)
        await asyncio.sleep(0.01)
        assert done == []
        set_stopping(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        while not done:
            await asyncio.sleep(0)
        assert done == ["drains", "listens no more", "listens no more"]
        while len(done) < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert done[3:] == ["uvicorn got 15"]

    try:
        asyncio.run(run())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
