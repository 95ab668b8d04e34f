"""What happens to the default host's processes, files and log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.parts.processes import alive, command_line, process_tree
from models.bundle.folder import load_bundle
from tests.contract import spoil
from tests.contract.process import (
    PNG,
    ROOT,
    SERVE,
    Server,
    free_port,
    kill,
    launch,
    serving,
    wait_for,
)
from tests.pictures import encoded


def gone(pids: set[int]) -> bool:
    """Whether none of these processes is left (one that waits to be buried counts as gone)."""
    return not pids & alive().keys()


def test_sigterm_drains_answers_what_is_in_flight_and_stops_everything(bundle_folder, png):
    """Requests whose bodies are still being sent when the signal comes are in flight."""
    with serving(bundle_folder, "--timeout-s", "20", "--drain-s", "1") as server:
        everything = server.pids()
        sent, go = threading.Event(), threading.Event()

        def slow_body() -> Iterator[bytes]:
            yield png[:50]
            sent.set()
            go.wait(20)
            yield png[50:]

        with ThreadPoolExecutor(1) as pool, server.client() as client:
            answer = pool.submit(server.post, slow_body())
            assert sent.wait(20)
            assert client.get("/readyz").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert client.post("/classify", content=png, headers=PNG).status_code == 200
            time.sleep(1.5)  # the time to drain is over
            assert server.process.poll() is None
            go.set()
            assert answer.result().status_code == 200
        assert server.process.wait(40) == 0
        wait_for(lambda: gone(everything))
        assert "Traceback" not in server.said()


def test_sigint_to_all_under_load_loses_nothing(bundle_folder, png):
    """As a terminal sends it."""
    with serving(bundle_folder, "--drain-s", "0") as server:
        everything = server.pids()
        answered = threading.Semaphore(0)

        def load() -> set[int]:
            """Ask until the server says that it is the last time. An error would be one lost."""
            statuses = set()
            with server.client() as client:
                while True:
                    answer = client.post("/classify", content=png, headers=PNG)
                    statuses.add(answer.status_code)
                    answered.release()
                    if answer.headers.get("connection") == "close":
                        return statuses

        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load) for _ in range(4)]
            for _ in range(20):
                assert answered.acquire(timeout=20)
            kill(server.pids(), signal.SIGINT)
            assert server.process.wait(40) == 0
            assert {status for each in loads for status in each.result()} == {200}
        wait_for(lambda: gone(everything))
        assert "Traceback" not in server.said()


def test_a_second_ctrl_c_ends_it_without_a_traceback(bundle_folder):
    with serving(bundle_folder, "--drain-s", "0") as server:
        for _ in range(10):  # some come while uvicorn stops already
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert server.process.wait(40) in (0, -signal.SIGINT)
        assert "Traceback" not in server.said()


def test_kill_leaves_nothing_behind_and_a_clean_tmp_hurts_nobody(
    bundle_folder, other_folder, tmp_path, png
):
    temporary, home = tmp_path / "tmp", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    shared = set(Path("/dev/shm").iterdir())
    environment = {"TMPDIR": str(temporary), "HOME": str(home), "SHIFTNAS_ADMIN_KEYS": "key"}
    with serving(bundle_folder, **environment) as server:
        assert server.post(png).status_code == 200
        for path in temporary.iterdir():  # as systemd-tmpfiles does it after ten days
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert server.post(png).status_code == 200
        assert server.post(png, **{"FLOPs-Budget": "333k"}).status_code == 200
        big = encoded(Image.effect_noise((1500, 1500), 99))  # a form as large would be spooled
        with server.client() as client:
            assert client.post("/classify", files={"image": big}).status_code == 200
            sent = {"Authorization": "Bearer key"}
            body = {"bundle": str(other_folder)}
            answer = client.post("/admin/reload", json=body, headers=sent)
        assert answer.status_code == 200, answer.text
        assert server.post(png).json()["predictions"][0]["label"].startswith("kind")
        assert server.ready()
        kill(server.pids())
        server.process.wait()
    assert [*temporary.iterdir(), *home.iterdir()] == []
    assert set(Path("/dev/shm").iterdir()) <= shared


def test_a_log_that_nobody_reads_stops_nothing(bundle_folder, png):
    """Neither serving nor stopping; and what was lost is said once somebody reads."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    server = launch(bundle_folder, "--log-level", "info", stderr=writes)
    os.close(writes)
    try:
        wait_for(server.ready, 60)
        with server.client(20) as client:
            for _ in range(300):
                assert client.post("/classify", content=png, headers=PNG).status_code == 200
            os.set_blocking(reads, False)
            said = b""

            def all_is_said() -> bool:
                nonlocal said
                with contextlib.suppress(BlockingIOError):
                    said += os.read(reads, 1 << 20)
                return said.count(b"path=/classify") == 300 or b"lost" in said

            wait_for(all_is_said)
            for _ in range(300):
                assert client.post("/classify", content=png, headers=PNG).status_code == 200
        assert server.stop() == 0
    finally:
        server.end()
        os.close(reads)


def test_a_wedged_inference_is_noticed_and_ends_the_process(bundle_folder, tmp_path, png):
    """With a status, so that whoever supervises it starts another."""
    folder = spoil.spoilt(bundle_folder, tmp_path / "wedges", spoil.wedges)
    with serving(folder, "--stall-s", "2", "--timeout-s", "60") as server:
        everything = server.pids()
        assert server.post(png).status_code == 200
        with ThreadPoolExecutor(2) as pool:
            asked = pool.submit(server.post, encoded(Image.new("RGB", (32, 32), spoil.WHITE)))
            alive = []

            def ended() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    alive.append(server.get("/livez").status_code)
                return server.process.poll() is not None

            wait_for(ended, 60)
            assert server.process.returncode not in (0, 2)
            assert alive[0] == 200
            assert {*alive} <= {200, 503}
            with contextlib.suppress(httpx.TransportError):
                assert asked.result().status_code in (503, 504)
        assert "wedged" in server.said()
        wait_for(lambda: gone(everything))


TAKES_THE_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_server_ends_with_its_terminal(bundle_folder, processes):
    reads, terminal = os.openpty()
    options = ["--bundle", bundle_folder, "--port", str(free_port()), "--processes", processes]
    process = subprocess.Popen(
        [SERVE[0], "-c", TAKES_THE_TERMINAL, *SERVE[1:], *options],
        cwd=ROOT,
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        start_new_session=True,
    )
    os.close(terminal)
    os.set_blocking(reads, False)
    said = b""

    def ready() -> bool:
        nonlocal said
        with contextlib.suppress(BlockingIOError):
            said += os.read(reads, 1 << 16)
        return said.count(b"ready") == int(processes)

    try:
        wait_for(ready, 60)
        everything = set(process_tree(process.pid))
        os.close(reads)
        assert process.wait(40) == 0
        wait_for(lambda: gone(everything))
    finally:
        kill(process_tree(process.pid))
        process.wait(20)


# ------------------------------------------------------------------------------ several processes


@pytest.fixture
def two(bundle_folder: Path) -> Iterator[Server]:
    with serving(bundle_folder, "--processes", "2", SHIFTNAS_ADMIN_KEYS="key") as running:
        yield running


def children(server: Server) -> set[int]:
    """Of the processes that listen beside the one that was started."""
    others = server.pids() - {server.process.pid}
    return {pid for pid in others if (line := command_line(pid)) and "resource_tracker" not in line}


def test_a_kill_of_one_of_two_loses_only_what_it_had_and_is_made_good(two: Server, png):
    before = children(two)
    assert len(before) == 2
    stop, lost = threading.Event(), threading.Semaphore(0)
    answered = threading.Semaphore(0)

    def load() -> set[int]:
        statuses = set()
        while not stop.is_set():
            try:
                with two.client(20) as client:
                    for _ in range(10):
                        answer = client.post("/classify", content=png, headers=PNG)
                        statuses.add(answer.status_code)
                        answered.release()
            except httpx.TransportError:
                lost.release()
        return statuses

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        try:
            for _ in range(30):
                assert answered.acquire(timeout=30)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: len(children(two) - {victim}) == 2)
            for _ in range(60):
                assert answered.acquire(timeout=30)
        finally:
            stop.set()
        assert {status for each in loads for status in each.result()} <= {200, 503}
    losses = 0
    while lost.acquire(blocking=False):
        losses += 1
    assert losses <= 8  # connections of the victim, and none of the other's
    wait_for(two.ready)
    assert two.stop() == 0


def test_sigterm_stops_both_and_answers_what_they_have(two: Server, png):
    everything = two.pids()
    begun, go = threading.Semaphore(0), threading.Event()

    def slow_body() -> Iterator[bytes]:
        yield png[:50]
        begun.release()
        go.wait(20)
        yield png[50:]

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(two.post, slow_body()) for _ in range(8)]
        for _ in asked:
            assert begun.acquire(timeout=20)
        time.sleep(0.3)
        two.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        with pytest.raises(ConnectionRefusedError):  # rather than to hang
            wait_for(lambda: socket.create_connection(("127.0.0.1", two.port), 5).close())
        go.set()
        assert [one.result().status_code for one in asked] == [200] * 8
    assert two.process.wait(40) == 0
    wait_for(lambda: gone(everything))
    assert "Traceback" not in two.said()


def test_a_hangup_reloads_both_in_place(bundle_folder, other_folder, tmp_path, png):
    """However long it takes to load; and what is refused is served by nobody, and counted."""
    mine = Path(shutil.copytree(bundle_folder, tmp_path / "mine"))
    versions = {one: load_bundle(one).version for one in (bundle_folder, other_folder)}

    def serve(folder: Path) -> None:
        for file in folder.iterdir():
            (mine / file.name).write_bytes(file.read_bytes())

    def served() -> set[str]:
        return {server.post(png).json()["model"]["version"] for _ in range(20)}

    with serving(mine, "--processes", "2", "--log-level", "info") as server:
        wait_for(lambda: server.said().count("address=") == 2, 60)
        before = children(server)
        serve(other_folder)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: server.said().count("reload done") == 2, 60)
        assert served() == {versions[other_folder]}
        (mine / "bundle.json").write_text("{")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: server.said().count("reload refused") == 2, 60)
        assert served() == {versions[other_folder]}
        assert 'reloads_total{result="refused"} 1.0' in server.get("/metrics").text
        assert children(server) == before
        # Neither does the end of one end the other, though none can take its place as yet.
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: "cannot start; it tries again" in server.said(), 60)
        assert served() == {versions[other_folder]}
        serve(bundle_folder)
        wait_for(lambda: server.said().count("address=") == 3, 60)
        assert server.stop() == 0
        assert "Traceback" not in server.said()


def test_a_bundle_that_is_bad_from_the_start_ends_all_of_them(bundle_folder, tmp_path):
    bad = Path(shutil.copytree(bundle_folder, tmp_path / "bad"))
    (bad / "template.onnx").unlink()
    server = launch(bad, "--processes", "2")
    try:
        assert server.process.wait(60) == 2
        assert "template.onnx is missing" in server.said()
    finally:
        server.end()
