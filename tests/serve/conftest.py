"""A real server in processes of its own, and photos to send it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import pytest

from models.bundle.folder import Bundle, load_bundle
from tests.bundles import make_bundle
from tests.pictures import encoded, picture

ROOT = Path(__file__).resolve().parents[2]
PNG = {"Content-Type": "image/png"}


@dataclass
class RunningServer:
    """A server process and a client that talks to it."""

    process: subprocess.Popen[str]
    client: httpx.Client
    url: str
    log: IO[str]

    def connect(self, timeout_s: float = 20) -> httpx.Client:
        """A client with connections of its own."""
        return connect(self.url, timeout_s)

    def post(self, content: bytes | Iterable[bytes], **headers: str) -> httpx.Response:
        """An image to classify, over a connection of its own."""
        with self.connect() as client:
            return client.post("/classify", content=content, headers=headers or PNG)

    def said(self) -> str:
        """All that it has written to standard error."""
        self.log.seek(0)
        return self.log.read()

    def descendants(self) -> set[int]:
        """Process ids of everything the server started."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {self.process.pid}

    def worker_pids(self) -> set[int]:
        """Of the processes that run subnets: the ones that were spawned."""
        found = set()
        for pid in self.descendants():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if "spawn_main" in command:
                found.add(pid)
        return found

    def http_pids(self) -> set[int]:
        """Of the processes that answer HTTP: forked, and with an event loop."""
        found = set()
        for pid in self.descendants() - self.worker_pids():
            try:
                open_files = [str(x.readlink()) for x in Path(f"/proc/{pid}/fd").iterdir()]
            except OSError:
                continue
            if "anon_inode:[eventpoll]" in open_files:
                found.add(pid)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the server and answer its exit status."""
        self.process.send_signal(number)
        return self.process.wait(20)


def connect(url: str, timeout_s: float) -> httpx.Client:
    """Without certificates: no test needs them, and to load them takes 30 ms."""
    return httpx.Client(base_url=url, timeout=timeout_s, verify=False)


def start_server(
    bundle: Path,
    *options: str,
    seconds: float = 60,
    within: Sequence[str] = (),
    **environment: str,
) -> RunningServer:
    """Start a server on a free port and wait until it is ready.

    ``within``: a command that runs the server as its last argument says (``unshare ...``).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*within, sys.executable, "-m", "shiftnas_serve", "--bundle", str(bundle)]
    # A file: nobody reads a pipe meanwhile, and a server that cannot write its log stands still.
    log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (stop_server closes it)
    process = subprocess.Popen(
        [*command, "--port", str(port), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "default"} | environment,
        start_new_session=True,  # no terminal, as a service has none
        stderr=log,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    client = connect(url, 30)
    running = RunningServer(process, client, url, log)
    try:
        wait_until_ready(running, seconds)
    except BaseException:
        stop_server(running)
        raise
    return running


def wait_until_ready(server: RunningServer, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended: {server.said()}")
        try:
            if server.client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server was not ready in time")


def stop_server(server: RunningServer) -> None:
    """End it whatever state it is in, so that no test leaves a process behind."""
    left = server.descendants()
    server.client.close()
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(20)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.log.close()


@contextlib.contextmanager
def serving(bundle: Path, *options: str, **environment: str) -> Iterator[RunningServer]:
    """A server while the block runs."""
    running = start_server(bundle, *options, **environment)
    try:
        yield running
    finally:
        stop_server(running)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano")


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    return load_bundle(bundle_folder)


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without stored answers: any arch of it may be answered."""
    return make_bundle("nano-vit", tmp_path_factory.mktemp("vit") / "nano")


@pytest.fixture(scope="session")
def vit(vit_folder: Path) -> Bundle:
    return load_bundle(vit_folder)


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same space and name with other weights and labels."""
    folder = tmp_path_factory.mktemp("other") / "nano"
    return make_bundle("nano-cnn", folder, seed=1, label="kind")


@pytest.fixture(scope="session")
def server(bundle_folder: Path) -> Iterator[RunningServer]:
    """One server for all tests that leave it well."""
    with serving(bundle_folder, "--max-body-bytes", "3000000") as running:
        yield running


@pytest.fixture(scope="session")
def keyed_server(bundle_folder: Path) -> Iterator[RunningServer]:
    """One that asks for keys, and lets pages of https://example.org ask."""
    with serving(
        bundle_folder,
        *("--prebuild", "no", "--cors-origins", "https://example.org"),
        SHIFTNAS_API_KEYS="first-key, second-key",
        SHIFTNAS_ADMIN_KEYS="old-admin-key, admin-key",
    ) as running:
        yield running


@pytest.fixture
def own_server(bundle_folder: Path) -> Iterator[RunningServer]:
    """A server that a test may kill."""
    with serving(bundle_folder, "--timeout-s", "10") as running:
        yield running


@pytest.fixture(scope="session")
def png() -> bytes:
    return encoded(picture())
