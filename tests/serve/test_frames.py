"""The transport between the HTTP process and a worker, within one process."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftnas_serve.frames import (
    Alive,
    Building,
    Cancel,
    Done,
    Dropped,
    Failed,
    FrameReader,
    Hello,
    Job,
    Late,
    Open,
    Others,
    Refused,
    Resident,
    Unbuilt,
    arch_indices,
    arch_key,
    pack,
)
from shiftnas_serve.inbox import Inbox, socket_path
from shiftnas_serve.link import Flight, Flights, connect


def job(number: int, arch: int = 1, deadline_s: float = 9.0, side: int = 2) -> Job:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Job(number, arch_key([arch]), pixels, 1.5, deadline_s)


def examples() -> list[object]:
    return [
        job(1),
        Cancel(2**60),
        Done(
            3, np.array([0.5, -1.0], np.float32), 1.5, 0.25, 0.5, 0.0, 4, "universal", b"\1\0\2\0"
        ),
        replace(job(8), aim_s=7.25),
        job(4, side=0),
        Late(5),
        Failed(6, "no memory: größer"),
        Hello(7, ((1e6, 1.5), (2e6, 3.0)), {"runtime": "x"}),
        Resident(("a", "b"), ()),
        Building(900.0),
        Unbuilt("no memory: größer"),
        Dropped(9),
        Open(3),
        Alive(),
        Others(12.5),
        Refused("no memory: größer"),
    ]


def same(one: object, other: object) -> bool:
    assert type(one) is type(other)
    for name in one.__slots__:
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        elif left != right:
            return False
    return True


@settings(max_examples=100)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_frames_survive_arriving_in_pieces_of_any_size(sizes):
    sent = examples()
    data = b"".join(pack(frame) for frame in sent)
    reader, got, at = FrameReader(), [], 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        got += list(reader.feed(data[at : at + size]))
        at += size
    assert len(got) == len(sent)
    assert all(same(a, b) for a, b in zip(got, sent, strict=True))


@given(st.lists(st.integers(0, 60_000), max_size=30))
def test_an_arch_survives_as_a_key(indices):
    assert arch_indices(arch_key(indices)) == tuple(indices)


def flight(number: int) -> Flight:
    return Flight(job(number, side=120), "id", 2.0, 0.5, asyncio.get_running_loop().create_future())


def test_flights_know_what_runs_before_a_deadline():
    async def run() -> None:
        flights, rng = Flights(), np.random.default_rng(0)
        answer = asyncio.get_running_loop().create_future()
        here: dict[int, Flight] = {}
        for number in range(200):
            due_s = float(rng.integers(5, 15))
            if here and rng.random() < 0.6:
                gone = int(rng.choice(list(here)))
                assert flights.pop(gone) is here.pop(gone)
                assert flights.pop(gone) is None
            else:
                new = Flight(Job(number, b"", np.zeros(0), 0.0, due_s), "id", 2.0, 0.5, answer)
                here[number] = new
                flights.add(new)
            before = sum(one.job.deadline_s <= due_s for one in here.values())
            assert flights.ahead_ms(due_s) == pytest.approx((2.0 * before, 0.5 * before))
            assert len(flights) == len(here)
        assert flights.pop_all() == list(here.values())
        assert not flights
        assert flights.ahead_ms(99.0) == (0.0, 0.0)

    asyncio.run(run())


def test_jobs_and_answers_cross_a_socket(tmp_path: Path):
    inbox = Inbox(tmp_path / "w0")

    def worker(until: float) -> list[int]:
        answered = []
        while time.monotonic() < until and len(answered) < 40:
            for client, frame in inbox.receive(0.05):
                if isinstance(frame, Open):
                    assert frame.revision == 7
                    inbox.send(client, pack(Hello(1, ((1.0, 1.0),), {})) + pack(Others(5e6)))
                if isinstance(frame, Job):
                    mean = np.array([frame.pixels.mean()], np.float32)
                    inbox.send(
                        client, pack(Done(frame.id, mean, 0, 0, 0, 0, 1, "resident", frame.key))
                    )
                    answered.append(frame.id)
        return answered

    async def http() -> None:
        said = []
        serving = asyncio.create_task(asyncio.to_thread(worker, time.monotonic() + 10))
        link = await connect(tmp_path / "w0", 7, said.append)
        while not link.ready:
            await asyncio.sleep(0.01)
        flights = [flight(number) for number in range(40)]
        for one in flights:
            link.send(one)
        assert link.in_flight.ahead_ms(9.0) == (80.0, 20.0)
        assert link.in_flight.ahead_ms(8.0) == (0.0, 0.0)
        # and what other HTTP processes have there, some of which has run since
        ms, least_ms = link.ahead_ms(9.0)
        assert 4e6 < least_ms <= 5e6 + 20
        assert ms - least_ms == pytest.approx(60)
        for one in flights:
            answer = await asyncio.wait_for(one.answer, 5)
            assert answer.logits[0] == np.float32(one.job.pixels.mean())
        assert not link.in_flight
        assert await serving == list(range(40))
        inbox.close()
        await asyncio.wait_for(link.closed, 5)
        assert not link.ready
        assert len(said) == 1

    asyncio.run(http())


def test_a_client_that_goes_is_noticed_and_what_it_cancelled_said(tmp_path: Path):
    inbox = Inbox(tmp_path / "w0")

    def received() -> list[object]:
        return [frame for _ in range(3) for _, frame in inbox.receive(0.1)]

    async def come_and_go() -> list[object]:
        link = await connect(tmp_path / "w0", 1, lambda hello: None)
        one, never_sent = flight(1), flight(2)
        link.send(one)
        await asyncio.sleep(0)  # a turn of the loop: it is written
        link.cancel(one)
        link.cancel(one)
        link.cancel(never_sent)
        got = await asyncio.to_thread(received)
        link.close()
        await link.closed
        return got

    opened, sent, cancelled = asyncio.run(come_and_go())
    assert opened == Open(1)
    assert isinstance(sent, Job)
    assert cancelled == Cancel(sent.id)
    assert received() == []
    assert len(inbox.lost) == 1
    assert not inbox.connected
    inbox.close()


def test_a_worker_accepts_when_files_can_be_opened_again(tmp_path: Path, monkeypatch):
    inbox = Inbox(tmp_path / "w0")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "w0"))
        client.sendall(pack(Open(3)))
        with monkeypatch.context() as full:

            def fail(self: socket.socket) -> None:
                raise OSError(errno.EMFILE, "Too many open files")

            full.setattr(socket.socket, "accept", fail)
            assert list(inbox.receive(0.1)) == []
        got = [frame for _ in range(2) for _, frame in inbox.receive(0.1)]
        assert got == [Open(3)]
    inbox.close()


def test_a_folder_with_too_long_a_name_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="TMPDIR"):
        socket_path(tmp_path / ("x" * 100), 0)
