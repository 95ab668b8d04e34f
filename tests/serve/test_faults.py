"""Workers that die, signals, stopping: real processes."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import (
    PNG,
    RunningServer,
    serving,
    start_server,
    stop_server,
    wait_until_ready,
)


def gone(pids: set[int]) -> bool:
    """Whether none of these processes runs (zombies do not)."""
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
            if status.rpartition(")")[2].split()[0] != "Z":
                return False
        except OSError:
            continue
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def metric(server: RunningServer, name: str) -> float:
    """A metric of a server now; 0 before it was first counted."""
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(f"{name} "))


def assert_soon_gone(pids: set[int]) -> None:
    for _ in range(100):
        if gone(pids):
            return
        time.sleep(0.1)
    raise AssertionError(f"still running: {[pid for pid in pids if not gone({pid})]}")


@pytest.fixture(scope="module")
def hurt(bundle_folder: Path) -> Iterator[RunningServer]:
    """One server for tests after which it has recovered."""
    with serving(bundle_folder, "--timeout-s", "10") as running:
        yield running


@pytest.fixture(scope="module")
def hasty(bundle_folder: Path) -> Iterator[RunningServer]:
    """One that waits for little, and for few."""
    with serving(bundle_folder, "--timeout-s", "1", "--max-waiting", "2") as running:
        yield running


def test_sigint_stops_everything_in_order_and_loses_nothing_on_kept_connections(bundle_folder, png):
    """Without any time to drain, under load."""
    server = start_server(bundle_folder, "--drain-s", "0")
    try:
        everything = server.descendants()
        assert len(everything) >= 3
        answered = threading.Semaphore(0)

        def load() -> list[int]:
            """Ask until the server says that it is the last time. An error would be one lost."""
            address, statuses = server.url.removeprefix("http://"), []
            connection = http.client.HTTPConnection(address, timeout=20)
            while True:
                connection.request("POST", "/classify", png, PNG)
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
                answered.release()
                if answer.getheader("Connection") == "close":
                    return statuses

        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load) for _ in range(4)]
            for _ in range(20):
                assert answered.acquire(timeout=20)
            assert server.stop(signal.SIGINT) == 0
            assert {status for each in loads for status in each.result()} == {200}
        assert_soon_gone(everything)
        assert "Traceback" not in server.said()
    finally:
        stop_server(server)


def test_sigterm_drains_answers_what_is_in_flight_and_stops_everything(bundle_folder, png):
    """Requests whose bodies are still being sent when the signal comes are in flight."""
    server = start_server(bundle_folder, "--timeout-s", "10", "--drain-s", "1")
    try:
        everything = server.descendants()
        sent, go = threading.Event(), threading.Event()

        def slow_body() -> Iterator[bytes]:
            yield png[:50]
            sent.set()
            go.wait(10)
            yield png[50:]

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.post, slow_body())
            assert sent.wait(5)
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: server.client.get("/readyz").status_code == 503)
            assert "draining" in server.client.get("/readyz").json()["detail"]
            time.sleep(1.5)  # the time to drain is over, the server has stopped listening
            assert server.process.poll() is None
            go.set()
            assert answer.result().status_code == 200
        assert server.process.wait(20) == 0
        assert_soon_gone(everything)
        assert "Traceback" not in server.said()
    finally:
        stop_server(server)


def test_a_killed_worker_costs_its_requests_a_503_and_is_replaced(hurt, png):
    """No request hangs: each is answered or gets 503, and the server is ready again."""
    lost = metric(hurt, "shiftnas_worker_losses_total")
    (worker,) = hurt.worker_pids()
    stop = threading.Event()
    answered = threading.Semaphore(0)

    def load() -> list[int]:
        statuses = []
        with hurt.connect(9) as client:
            while not stop.is_set():
                statuses.append(client.post("/classify", content=png, headers=PNG).status_code)
                answered.release()
        return statuses

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        for _ in range(10):
            assert answered.acquire(timeout=10)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: hurt.worker_pids() not in ({worker}, set()))
        wait_until_ready(hurt)
        time.sleep(0.5)
        stop.set()
        statuses = [status for each in loads for status in each.result()]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 10
    (replacement,) = hurt.worker_pids()
    assert replacement != worker
    assert hurt.client.post("/classify", content=png, headers=PNG).status_code == 200
    assert metric(hurt, "shiftnas_worker_losses_total") == lost + 1


def test_a_frozen_worker_is_504_and_then_serves_again(hasty, png):
    (worker,) = hasty.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    response = hasty.client.post("/classify", content=png, headers=PNG)
    assert response.status_code == 504
    assert response.headers["content-type"] == "application/problem+json"
    os.kill(worker, signal.SIGCONT)
    time.sleep(0.3)
    assert hasty.client.post("/classify", content=png, headers=PNG).status_code == 200


def test_a_client_that_stalls_is_408_and_stops_nobody(hasty, png):
    address = ("127.0.0.1", int(hasty.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=10) as stalled:
        head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        stalled.sendall(head.encode() + b"never more")
        assert hasty.client.post("/classify", content=png, headers=PNG).status_code == 200
        assert stalled.recv(100).startswith(b"HTTP/1.1 408")


_FEW_ATTEMPTS = """
import sys
from shiftnas_serve import supervisor
supervisor._ATTEMPTS = 2
from shiftnas_serve.__main__ import main
sys.exit(main(sys.argv[4:]))  # after python -m shiftnas_serve
"""


@pytest.mark.slow
def test_a_server_whose_workers_will_not_start_again_ends_and_says_why(
    bundle_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start_server(bundle_folder, within=(sys.executable, "-c", _FEW_ATTEMPTS))
    try:
        everything = server.descendants()
        (copied,) = tmp_path.glob("shiftnas-*/bundle-1/supernet.safetensors")
        copied.unlink()
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert server.process.wait(60) == 1
        assert_soon_gone(everything)
        assert "error: worker 0 ended before it served, 2 times in a row" in server.said()
    finally:
        stop_server(server)


def test_a_lost_manager_ends_the_server_with_a_status_that_says_so(own_server):
    """Nothing can be served without the queues: better to end than to seem alive."""
    server = own_server
    everything = server.descendants()
    trackers = {pid for pid in everything if "tracker" in Path(f"/proc/{pid}/cmdline").read_text()}
    (manager,) = everything - server.worker_pids() - server.http_pids() - trackers
    os.kill(manager, signal.SIGKILL)
    assert server.process.wait(20) == 1
    assert_soon_gone(everything)


def test_too_many_requests_are_429_with_retry_after(hasty, png):
    (worker,) = hasty.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(hasty.post, [png] * 6))
    os.kill(worker, signal.SIGCONT)
    shed = [response for response in responses if response.status_code == 429]
    assert len(shed) >= 4
    assert all(int(response.headers["Retry-After"]) >= 1 for response in shed)
    wait_for(lambda: hasty.post(png).status_code == 200)


def test_nothing_is_left_when_the_parent_is_killed(bundle_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start_server(bundle_folder)
    try:
        everything = server.descendants()
        assert list(tmp_path.glob("shiftnas-*"))
        server.process.kill()
        server.process.wait()
        assert_soon_gone(everything)
        assert not list(tmp_path.glob("shiftnas-*"))
    finally:
        stop_server(server)


def test_what_a_killed_worker_among_several_had_runs_on_another(bundle_folder, png):
    server = start_server(bundle_folder, "--workers", "2", "--timeout-s", "20")
    try:
        victim, other = sorted(server.worker_pids())
        for pid in (victim, other):
            os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(server.post, png) for _ in range(8)]
            wait_for(lambda: metric(server, "shiftnas_requests_in_flight") == 8)
            time.sleep(0.3)
            os.kill(victim, signal.SIGKILL)
            os.kill(other, signal.SIGCONT)
            assert [one.result().status_code for one in asked] == [200] * 8
        assert metric(server, "shiftnas_retries_total") >= 1
        wait_for(lambda: metric(server, "shiftnas_worker_losses_total") == 1)
    finally:
        stop_server(server)


def test_a_wedged_inference_is_noticed_and_its_worker_replaced(bundle_folder, png):
    server = start_server(bundle_folder, "--stall-s", "1", "--timeout-s", "30")
    try:
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        response = server.client.post("/classify", content=png, headers=PNG)
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1
        wait_for(lambda: server.worker_pids() not in ({worker}, set()))
        wait_until_ready(server)
        assert server.client.post("/classify", content=png, headers=PNG).status_code == 200
        assert metric(server, "shiftnas_worker_stalls_total") == 1
    finally:
        stop_server(server)


def test_a_client_that_goes_is_no_longer_waited_for(hurt, png):
    gone_before = metric(hurt, 'shiftnas_requests_total{status="499"}')
    (worker,) = hurt.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    with hurt.connect(0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/classify", content=png, headers=PNG)
    wait_for(lambda: metric(hurt, "shiftnas_requests_in_flight") == 0)
    os.kill(worker, signal.SIGCONT)
    assert metric(hurt, 'shiftnas_requests_total{status="499"}') == gone_before + 1
    assert hurt.client.post("/classify", content=png, headers=PNG).status_code == 200


def test_sigterm_to_all_processes_at_once_drops_nothing(bundle_folder, png):
    """As a supervisor or a terminal sends it."""
    server = start_server(bundle_folder, "--drain-s", "1")
    try:
        everything = server.descendants()
        draining = threading.Event()

        def load() -> list[int]:
            statuses = []
            with server.connect() as client:
                while not draining.is_set():
                    statuses.append(client.post("/classify", content=png, headers=PNG).status_code)
            return statuses

        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load) for _ in range(4)]
            time.sleep(0.5)
            for pid in (server.process.pid, *everything):
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda: server.client.get("/readyz").status_code == 503)
            answer = server.client.post("/classify", content=png, headers=PNG)
            assert answer.status_code == 200
            assert answer.headers["Connection"] == "close"
            draining.set()
            statuses = [status for each in loads for status in each.result()]
        assert set(statuses) == {200}
        assert server.process.wait(20) == 0
        assert_soon_gone(everything)
    finally:
        stop_server(server)


def test_a_killed_http_process_is_replaced_and_the_port_stays_open(hurt, png):
    """And then stops in order: the last test of this server."""
    server = hurt
    (http,) = server.http_pids()
    os.kill(http, signal.SIGKILL)
    wait_for(lambda: server.http_pids() not in ({http}, set()))
    wait_until_ready(server)
    assert server.client.post("/classify", content=png, headers=PNG).status_code == 200
    everything = server.descendants()
    assert server.stop(signal.SIGTERM) == 0
    assert_soon_gone(everything)
