"""Several HTTP processes: what they count adds up, whatever happens to one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from shiftnas_serve.metrics import Metrics
from tests.serve.conftest import (
    PNG,
    RunningServer,
    serving,
    start_server,
    stop_server,
    wait_until_ready,
)
from tests.serve.test_faults import assert_soon_gone, metric, wait_for


def answers_of(folder: Path, pid: int) -> float:
    """Answers that one HTTP process has counted."""
    (file,) = folder.glob(f"shiftnas-*/metrics/{pid}.*")
    numbers = np.fromfile(file)
    places = Metrics(folder).answers.values()
    return float(sum(numbers[count.place] for count in places))


def ask(server: RunningServer, content: bytes) -> int:
    return server.post(content).status_code


@pytest.fixture(scope="module")
def two(bundle_folder: Path) -> Iterator[RunningServer]:
    """Two HTTP processes and two workers, for tests that leave a server well."""
    with serving(
        bundle_folder, "--http-processes", "2", "--workers", "2", "--timeout-s", "20"
    ) as running:
        yield running


def test_counters_add_up_exactly_also_when_a_process_was_replaced(
    bundle_folder, png, monkeypatch, tmp_path
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start_server(bundle_folder, "--http-processes", "2", "--workers", "2")
    try:
        sent = Counter[int]()

        def send(number: int) -> None:
            with ThreadPoolExecutor(8) as pool:
                contents = [png if turn % 3 else b"no image" for turn in range(number)]
                sent.update(pool.map(lambda content: ask(server, content), contents))

        def assert_counted() -> None:
            for status, number in sent.items():
                assert metric(server, f'shiftnas_requests_total{{status="{status}"}}') == number
            assert metric(server, "shiftnas_requests_in_flight") == 0
            histogram = 'shiftnas_stage_seconds_count{stage="infer"}'
            assert metric(server, histogram) == sent[200]

        pids = server.http_pids()
        assert len(pids) == 2
        send(60)
        while any(answers_of(tmp_path, pid) == 0 for pid in pids):
            send(10)
        assert set(sent) == {200, 415}
        assert sum(answers_of(tmp_path, pid) for pid in pids) == sent.total()
        assert_counted()
        victim = min(pids)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(server.http_pids() - {victim}) == 2)
        wait_until_ready(server)
        assert_counted()
        send(60)
        assert_counted()
        assert metric(server, "shiftnas_http_losses_total") == 1
        # a worker's death is counted once, however many processes noticed it
        worker = min(server.worker_pids())
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(server.worker_pids() - {worker}) == 2)
        wait_until_ready(server)
        assert metric(server, "shiftnas_worker_losses_total") == 1
    finally:
        stop_server(server)


def connections_to(port: int, pid: int) -> int:
    """Connections of a process that came to a port of this machine."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = {
        f"socket:[{r[9]}]" for r in rows if r[1].endswith(f":{port:04X}") and r[3] == "01"
    }
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()))
    return sum(one in established for one in found)


def test_connections_that_come_at_once_are_dealt_out(two):
    port = int(two.url.rpartition(":")[2])
    two.client.close()  # its connections count, too
    two.client = two.connect(30)
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        pids = two.http_pids()
        wait_for(lambda: sum(connections_to(port, pid) for pid in pids) >= 32)
        # by chance alone, one would have fewer than 4 of 32 once in half a million times
        assert min(connections_to(port, pid) for pid in pids) >= 4


def test_gauges_of_a_dead_process_go(two, png):
    workers, victims = two.worker_pids(), two.http_pids()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, two, png) for _ in range(8)]
        wait_for(lambda: metric(two, "shiftnas_requests_in_flight") == 8)
        for pid in victims:  # one after the other: whoever has them
            os.kill(pid, signal.SIGKILL)
        for one in asked:
            with pytest.raises(httpx.TransportError):
                one.result()
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    wait_for(lambda: len(two.http_pids() - victims) == 2)
    wait_until_ready(two)
    assert metric(two, "shiftnas_requests_in_flight") == 0
    assert ask(two, png) == 200


def test_ready_means_that_every_process_has_a_worker(two, png):
    def statuses() -> set[int]:
        def ready(_: int) -> int:
            with two.connect() as client:
                return client.get("/readyz").status_code

        with ThreadPoolExecutor(4) as pool:
            return set(pool.map(ready, range(12)))

    victim, workers = min(two.http_pids()), two.worker_pids()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(two.http_pids() - {victim}) == 2)
    assert statuses() == {503}
    os.kill(min(workers), signal.SIGCONT)  # the other one is as good as lost
    wait_until_ready(two)
    assert statuses() == {200}
    os.kill(max(workers), signal.SIGCONT)
    assert {ask(two, png) for _ in range(8)} == {200}


def test_a_rate_holds_over_all_processes(bundle_folder, png, monkeypatch, tmp_path):
    monkeypatch.setenv("SHIFTNAS_API_KEYS", "one")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    options = ("--rate-per-s", "0.001", "--rate-burst", "40", "--http-processes", "2")
    server = start_server(bundle_folder, *options)
    try:

        def ask_with_key(_: int) -> int:
            return server.post(png, **PNG, Authorization="Bearer one").status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = Counter(pool.map(ask_with_key, range(100)))
        assert statuses == {200: 40, 429: 60}
        while any(answers_of(tmp_path, pid) == 0 for pid in server.http_pids()):
            assert ask_with_key(0) == 429
    finally:
        stop_server(server)


def test_a_process_that_stands_still_is_replaced(bundle_folder, png):
    server = start_server(bundle_folder, "--http-processes", "2", "--stall-s", "2")
    try:
        stuck, other = sorted(server.http_pids())
        os.kill(stuck, signal.SIGSTOP)
        wait_for(lambda: stuck not in server.http_pids() and len(server.http_pids()) == 2, 30)
        assert other in server.http_pids()
        wait_until_ready(server)
        assert {ask(server, png) for _ in range(20)} == {200}
        assert metric(server, "shiftnas_http_losses_total") == 1
    finally:
        stop_server(server)


def test_sigterm_drains_them_all(bundle_folder, png):
    """Bodies that are still being sent when the signal comes are in flight in every process."""
    server = start_server(bundle_folder, "--http-processes", "2", "--timeout-s", "10")
    try:
        everything = server.descendants()
        begun = threading.Semaphore(0)
        go = threading.Event()

        def slow_body():
            yield png[:50]
            begun.release()
            go.wait(10)
            yield png[50:]

        def ask_slowly(_: int) -> int:
            return server.post(slow_body()).status_code

        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask_slowly, number) for number in range(12)]
            for _ in asked:
                assert begun.acquire(timeout=10)
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1.5)
            go.set()
            assert [one.result() for one in asked] == [200] * 12
        assert server.process.wait(20) == 0
        assert_soon_gone(everything)
        said = server.said()
        assert "Traceback" not in said
        assert "Already not alive" not in said
    finally:
        stop_server(server)
