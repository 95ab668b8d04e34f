"""The HTTP process's side of its workers: a worker in this process, which does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from shiftnas_serve import link as link_module
from shiftnas_serve import workers as workers_module
from shiftnas_serve.frames import (
    Building,
    Cancel,
    Done,
    Dropped,
    Frame,
    Hello,
    Job,
    Open,
    Unbuilt,
    pack,
)
from shiftnas_serve.inbox import Client, Inbox, socket_path
from shiftnas_serve.link import Flight, Link, connect
from shiftnas_serve.problem import Problem
from shiftnas_serve.run_folder import RunFolder
from shiftnas_serve.workers import Workers

_PID = 2**22 + 7  # above what Linux gives
_KEY = b"\0\0"


class Counts:
    """In the place of ``Metrics``."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return self

    def inc(self) -> None:
        self.counted.append("")


class FakeWorker:
    """Greets, reads and answers when it is told to, and never else."""

    def __init__(self, path: Path) -> None:
        self.inbox = Inbox(path)
        self.client: Client | None = None
        self.read: list[Frame] = []

    def receive(self, wait_s: float = 0.1) -> list[Frame]:
        """What came since the last time; an Open is greeted."""
        got = []
        for client, frame in self.inbox.receive(wait_s):
            if isinstance(frame, Open):
                self.client, client.revision = client, frame.revision
                self.say(Hello(_PID, ((1e6, 1.0), (2e6, 2.0)), {}))
            else:
                got.append(frame)
        return got

    def take(self) -> list[Frame]:
        """All that has come so far, kept."""
        self.read += [one for one in self.receive(0) if isinstance(one, Job)]
        return self.read

    def say(self, *frames: Frame) -> None:
        assert self.client is not None
        self.inbox.send(self.client, b"".join(pack(frame) for frame in frames))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[FakeWorker]:
    made = FakeWorker(socket_path(tmp_path, 0))
    yield made
    made.inbox.close()


@pytest.fixture
def killed(monkeypatch) -> list[int]:
    """Ids of processes that were killed; none really is."""
    pids: list[int] = []
    monkeypatch.setattr(link_module.os, "kill", lambda pid, number: pids.append(pid))
    return pids


@pytest.fixture
def hasty(monkeypatch) -> None:
    """Everything that is waited for comes soon."""
    monkeypatch.setattr(link_module, "LOOK_S", 0.02)
    monkeypatch.setattr(workers_module, "LOOK_S", 0.02)
    monkeypatch.setattr(link_module, "_ERROR_RETRY_S", 0.01)
    monkeypatch.setattr(workers_module, "_RETRY_S", 0.01)


def done(job_id: int) -> Done:
    return Done(job_id, np.zeros(2, np.float32), 0.0, 0.0, 0.0, 0.0, 1, "resident", _KEY)


def flight(number: int, side: int = 2) -> Flight:
    pixels = np.zeros((side, side, 3), np.uint8)
    answer = asyncio.get_running_loop().create_future()
    return Flight(Job(number, _KEY, pixels, 0.0, 9.0), "id", 1.0, 1.0, answer)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def linked(worker: FakeWorker, path: Path) -> Link:
    link = await connect(path, 1, lambda frame: None)
    await until(lambda: (worker.receive(0), link.ready)[1])
    return link


@contextlib.asynccontextmanager
async def running(
    worker: FakeWorker, folder: Path, metrics: Any, stall_s: float = 0.1, others: Any = ()
) -> Any:
    every = (worker, *others)
    workers = Workers(folder, 1, len(every), metrics, stall_s)
    await workers.start()
    await until(lambda: ([one.receive(0) for one in every], workers.all_ready)[1])
    yield workers
    await workers.stop()
    for link in workers._links:  # what a worker never read would keep a connection open
        if link is not None and link._transport is not None:
            link._transport.abort()
    await asyncio.sleep(0)


async def ask(workers: Workers, give_up_ms: float, side: int = 2) -> object:
    now = time.monotonic()
    return await workers.run(
        key=_KEY,
        subnet_id="id",
        flops=1,
        least_flops=1,
        pixels=np.zeros((side, side, 3), np.uint8),
        prepared=True,
        deadline_s=now + 60,
        aim_s=None,
        give_up_s=now + give_up_ms / 1000,
        client_gone=asyncio.Event().wait,  # type: ignore[arg-type]
    )


def test_a_wedged_worker_is_noticed_by_one_client_that_asks_again_and_again(
    worker, tmp_path, killed, hasty
):
    """Each of its requests ends before ``stall_s`` is over, and none is in flight between them."""

    async def run() -> None:
        counts = Counts()
        async with running(worker, tmp_path, counts, stall_s=0.5) as workers:
            statuses = []
            while not killed:
                with pytest.raises(Problem) as ended:
                    await ask(workers, give_up_ms=10)
                statuses.append(ended.value.status)
                assert len(statuses) < 500, "nobody noticed"
            assert len(statuses) > 1
            assert set(statuses) <= {503, 504}
            assert killed == [_PID]
            assert counts.counted == [""]

    asyncio.run(run())


def test_one_that_only_ever_hears_of_clients_that_went_is_not_wedged(
    worker, tmp_path, killed, hasty
):
    """It says that it has dropped their jobs, which is as good as an answer."""

    async def run() -> None:
        async with running(worker, tmp_path, Counts(), stall_s=0.2) as workers:
            for _ in range(60):
                with pytest.raises(Problem, match="in time"):
                    await ask(workers, give_up_ms=5)
                await asyncio.sleep(0)
                frames = worker.receive(0)
                worker.say(*(Dropped(one.id) for one in frames if isinstance(one, Cancel)))
            assert not killed
            assert workers.ready

    asyncio.run(run())


def test_looks_at_a_silent_worker_are_counted_and_no_seconds(worker, tmp_path, monkeypatch):
    async def run() -> None:
        link = await linked(worker, tmp_path / "w0")
        assert not any(link.stalls(1.0) for _ in range(9)), "it owes nothing"
        link.send(flight(1))
        await until(worker.receive)
        looks = [link.stalls(1.0) for _ in range(4)]
        slept = time.monotonic() + 3600
        monkeypatch.setattr(time, "monotonic", lambda: slept)
        assert looks == [False] * 4
        assert link.stalls(1.0)
        monkeypatch.undo()
        worker.say(Building(30.0))
        await until(lambda: not link.stalls(1.0))
        assert not any(link.stalls(1.0) for _ in range(99)), "a build may take long"
        assert any(link.stalls(1.0) for _ in range(30)), "but not for ever"
        worker.say(done(77))  # anything else: the build is over
        await until(lambda: link._silent_looks == 0)
        assert any(link.stalls(1.0) for _ in range(6))
        worker.say(done(1))
        await until(lambda: not link.in_flight)
        assert not any(link.stalls(1.0) for _ in range(9))
        link.close()

    asyncio.run(run())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_cancelled_while_a_worker_is_busy_is_neither_kept_nor_written(
    worker, tmp_path, new_loop
):
    async def run() -> None:
        link = await linked(worker, tmp_path / "w0")
        for turn in range(1, 6):  # 5 times 27 MB
            flights = [flight(1000 * turn + n, side=300) for n in range(100)]
            for one in flights:
                link.send(one)
            assert len(link.in_flight) == 100
            await asyncio.sleep(0.01)
            assert link._transport is not None
            assert link._transport.get_write_buffer_size() < 500_000
            for one in flights:
                link.cancel(one)
            assert not link.in_flight
            assert not link._unsent
        last = flight(1, side=300)
        link.send(last)
        got: list[Frame] = []

        def all_read() -> bool:
            got.extend(worker.receive(0))
            return any(isinstance(one, Job) and one.id == 1 for one in got)

        await until(all_read)
        jobs = [one.id for one in got if isinstance(one, Job)]
        assert len(jobs) < 10
        assert sorted([*(one.id for one in got if isinstance(one, Cancel)), 1]) == sorted(jobs)
        assert link.stalls(0.0), "it owes an answer to each that was written"
        worker.say(*(Dropped(one) for one in jobs if one != 1), done(1))
        assert isinstance(await last.answer, Done)
        assert not link.stalls(0.0)
        link.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def test_all_that_a_busy_worker_could_not_take_is_sent_when_it_can(worker, tmp_path):
    async def run() -> None:
        link = await linked(worker, tmp_path / "w0")
        flights = [flight(n, side=200) for n in range(1, 30)]
        for one in flights:
            link.send(one)
        got: list[Frame] = []
        await until(lambda: got.extend(worker.receive(0)) or len(got) == len(flights))
        assert [one.id for one in got if isinstance(one, Job)] == [one.job.id for one in flights]
        link.close()

    asyncio.run(run())


def test_a_worker_is_connected_when_files_can_be_opened_again(
    worker, tmp_path, monkeypatch, hasty, caplog
):
    async def run() -> None:
        loop = asyncio.get_running_loop()
        really, tried = loop.create_unix_connection, []

        async def full(*arguments: Any) -> Any:
            tried.append(arguments)
            if len(tried) <= 2:
                raise OSError(errno.EMFILE, "Too many open files")
            if len(tried) == 3:
                raise RuntimeError("something that nobody thought of")
            return await really(*arguments)

        monkeypatch.setattr(loop, "create_unix_connection", full)
        async with running(worker, tmp_path, Counts()) as workers:
            assert workers.all_ready
            assert len(tried) == 4

    asyncio.run(run())


def test_a_full_disk_stops_nobody_from_ending_a_wedged_worker(
    worker, tmp_path, monkeypatch, killed, hasty
):
    def full(self: RunFolder, event: str) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "once", full)

    async def run() -> None:
        async with running(worker, tmp_path, Counts()) as workers:
            for times in (1, 2):
                with pytest.raises(Problem, match="lost"):
                    await ask(workers, give_up_ms=10_000)
                assert len(killed) == times
                await until(lambda: (worker.receive(0), workers.ready)[1])

    asyncio.run(run())


def test_what_a_worker_could_not_prebuild_is_counted(worker, tmp_path):
    async def run() -> None:
        counts = Counts()
        async with running(worker, tmp_path, counts):
            worker.say(Unbuilt("no memory"))
            await until(lambda: counts.counted)

    asyncio.run(run())


@pytest.fixture
def three(worker: FakeWorker, tmp_path: Path) -> Iterator[list[FakeWorker]]:
    others = [FakeWorker(socket_path(tmp_path, number)) for number in (1, 2)]
    yield [worker, *others]
    for one in others:
        one.inbox.close()


async def lose(workers: list[FakeWorker], asked: list[asyncio.Task[object]]) -> None:
    """End the worker that a job has come to."""

    def holder() -> FakeWorker | None:
        return next((one for one in workers if one.read or one.take()), None)

    await until(lambda: holder() or all(one.done() for one in asked))
    found = holder()
    if found is not None:
        workers.remove(found)
        found.inbox.close()


def test_what_was_lost_twice_is_no_503_which_would_be_sent_to_another_replica(three, tmp_path):
    async def run() -> None:
        counts = Counts()
        async with running(three[0], tmp_path, counts, 60, three[1:]) as workers:
            asked = [asyncio.create_task(ask(workers, give_up_ms=20_000))]
            left = list(three)
            await lose(left, asked)
            await lose(left, asked)
            with pytest.raises(Problem, match="two workers") as lost:
                await asked[0]
            assert lost.value.status == 500
            assert counts.counted == [""], "it ran once more"
            await until(lambda: not left[0].take())
            asked = [asyncio.create_task(ask(workers, give_up_ms=20_000))]
            await lose(left, asked)
            with pytest.raises(Problem, match="was lost") as lost:
                await asked[0]
            assert lost.value.status == 503, "there is no other"

    asyncio.run(run())


def test_a_job_that_no_lost_worker_had_begun_with_is_not_suspect(three, tmp_path):
    """It waited here, while the workers had no time to read."""

    async def run() -> None:
        async with running(three[0], tmp_path, Counts(), 60, three[1:]) as workers:
            link = workers._ready_links()[0]
            waiting = flight(1, side=300)
            for number in range(2, 40):
                link.send(flight(number, side=300))
            await asyncio.sleep(0.01)
            link.send(waiting)
            assert not link.has_written(waiting)
            first = next(iter(link.in_flight._by_id.values()))
            assert link.has_written(first)
            three[0].inbox.close()
            await until(lambda: waiting.link is not link)
            assert first.retried
            assert not waiting.retried

    asyncio.run(run())
