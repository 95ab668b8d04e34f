"""A server in processes of its own, seen from outside: its port, its log, what it costs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from benchmarks.parts.processes import process_tree

ROOT = Path(__file__).resolve().parents[2]
PNG = {"Content-Type": "image/png"}
SERVE = (sys.executable, "-m", "shiftnas_serve")


@dataclass(frozen=True)
class Server:
    """A process that serves, or is on its way to."""

    process: subprocess.Popen[str]
    port: int
    log: IO[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, timeout_s: float = 60) -> httpx.Client:
        """A client with connections of its own. (Certificates take 30 ms, and none are needed.)"""
        return httpx.Client(base_url=self.url, timeout=timeout_s, verify=False)

    def get(self, path: str, **named: object) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **named)

    def post(self, content: object, path: str = "/classify", **headers: str) -> httpx.Response:
        """An image to classify, over a connection of its own."""
        with self.client() as client:
            return client.post(path, content=content, headers=headers or PNG)

    def said(self) -> str:
        """All that it has written to standard error."""
        self.log.seek(0)
        return self.log.read()

    def pids(self) -> set[int]:
        """Of itself and of all that it started and that still runs."""
        return set(process_tree(self.process.pid))

    def ready(self, path: str = "/readyz") -> bool:
        try:
            return self.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self, seconds: float = 60, path: str = "/readyz") -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.said()}"
            return self.ready(path)

        wait_for(ready, seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and answer its exit status."""
        self.process.send_signal(number)
        return self.process.wait(40)

    def end(self) -> None:
        """Whatever state it is in, so that no test leaves a process behind."""
        left = self.pids()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        kill(left)
        self.process.wait(20)
        self.log.close()


def launch(
    bundle: Path,
    *options: str,
    command: Sequence[str] = SERVE,
    port: int | None = None,
    stderr: int | None = None,
    **environment: str,
) -> Server:
    """Start a server and do not wait for it. ``stderr``: where its log goes, if not into a file."""
    port = free_port() if port is None else port
    # A file: nobody reads a pipe meanwhile.
    log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (Server.end closes it)
    process = subprocess.Popen(
        [*command, "--bundle", str(bundle), "--port", str(port), *options],
        cwd=ROOT,
        env=os.environ | environment,
        start_new_session=True,  # no terminal, as a service has none
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log if stderr is None else stderr,
        text=True,
    )
    return Server(process, port, log)


@contextlib.contextmanager
def serving(
    bundle: Path, *options: str, command: Sequence[str] = SERVE, **environment: str
) -> Iterator[Server]:
    """A server that is ready while the block runs."""
    server = launch(bundle, *options, command=command, **environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """``seconds`` is when to give up, not what may be taken."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def forget_peak(pids: set[int]) -> int:
    """Let the peak of memory begin again, and answer what is resident now, in bytes."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pids)


def peak_bytes(pids: set[int]) -> int:
    """The most that was resident since ``forget_peak``."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total
