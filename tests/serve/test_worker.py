"""What a worker makes of its jobs: its own thread, no processes."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle.folder import Bundle
from models.space.arch import Arch
from shiftnas_serve.frames import (
    Alive,
    Building,
    Cancel,
    Done,
    Dropped,
    Failed,
    FrameReader,
    Job,
    Others,
    Unbuilt,
    arch_key,
)
from shiftnas_serve.inbox import Client
from shiftnas_serve.run_folder import RunFolder
from shiftnas_serve.settings import Settings
from shiftnas_serve.worker import Loaded, SubnetRunner, load_revision
from shiftnas_serve.worker_process import Runners


class Replies:
    """In the place of an ``Inbox``: keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[object] = []
        self.told: list[object] = []
        self.coming: list[tuple[Client, object]] = []
        self.lost: list[Client] = []
        self.connected: list[Client] = []

    def send(self, client: object, data: bytes) -> None:
        self.frames += FrameReader().feed(data)

    def clients(self, revision: int) -> list[Client]:
        return self.connected

    def tell_all(self, frame: object, revision: int | None = None) -> None:
        self.told.append(frame)

    def tell_one(self, frame: object, revision: int) -> None:
        self.told.append(frame)

    def receive(self, timeout_s: float) -> Iterator[tuple[Client, object]]:
        """What was put into ``coming``, once."""
        coming, self.coming = self.coming, []
        yield from coming


class Nobody(Client):
    """A client without a connection."""

    def __init__(self) -> None:
        self.revision = 1


@pytest.fixture
def loaded(bundle_folder: Path) -> Iterator[Loaded]:
    settings = Settings(bundle=bundle_folder, prebuild=False)
    made = load_revision(bundle_folder, settings)
    yield made
    made.engine.close()


def key_of(bundle: Bundle, arch: Arch) -> bytes:
    return arch_key(bundle.space.indices(arch).tolist())


@pytest.mark.parametrize("crop_ratio", [None, 0.875])
def test_a_photo_is_prepared_once_for_the_subnet_that_runs(loaded: Loaded, crop_ratio):
    """As if that subnet had been asked for: first with time for the largest, then with none."""
    bundle = loaded.bundle
    object.__setattr__(bundle.preprocess, "crop_ratio", crop_ratio)
    photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    largest, smallest = bundle.answer(math.inf), bundle.answer(bundle.min_flops)
    sides = {bundle.space.resolution(arch) for arch in (largest, smallest)}
    assert len(sides) == 2, "the photo would be prepared alike"
    replies = Replies()
    inbox: Any = replies
    runner = SubnetRunner(1, loaded, inbox, Settings(bundle=Path(), prebuild=False))
    now, key = time.monotonic(), key_of(bundle, largest)
    for identity, aim_s in enumerate((now + 60, now)):
        job = Job(identity, key, photo, now, now + 60, aim_s, prepared=False)
        runner.waiting.add(Nobody(), job)
        assert runner.run_group()
    for reply, arch in zip(replies.frames, (largest, smallest), strict=True):
        assert isinstance(reply, Done)
        assert reply.key == key_of(bundle, arch)
        assert reply.turn_ms >= reply.infer_ms
        images = bundle.preprocess.array(photo, bundle.space.resolution(arch))[None]
        np.testing.assert_array_equal(reply.logits, loaded.engine.run(arch, images).logits[0])


def job_of(bundle: Bundle, arch: Arch, number: int = 1) -> Job:
    side = bundle.space.resolution(arch)
    pixels, now = np.zeros((side, side, 3), np.uint8), time.monotonic()
    return Job(number, key_of(bundle, arch), pixels, now, now + 60)


def unbuilt_arch(loaded: Loaded) -> Arch:
    return next(arch for arch in loaded.bundle.archs() if not loaded.engine.is_resident(arch))


def runner_of(loaded: Loaded, replies: Replies, *, prebuild: bool = False) -> SubnetRunner:
    inbox: Any = replies
    return SubnetRunner(1, loaded, inbox, Settings(bundle=Path(), prebuild=prebuild))


def fail(*arguments: object) -> object:
    raise MemoryError("no memory for this subnet")


def test_between_a_build_and_the_inference_after_it_a_worker_is_heard_of(
    loaded: Loaded, monkeypatch
):
    """Or an inference that does not come back would have the time of a build."""
    replies, arch = Replies(), unbuilt_arch(loaded)
    runner = runner_of(loaded, replies)
    built: Any = loaded.engine._runtime.build(loaded.bundle, arch)

    class Session:
        size_bytes, made = built.size_bytes, built.made

        def run(self, images: np.ndarray) -> np.ndarray:
            assert replies.told == [Building(5.0), Alive()]
            return built.run(images)

    monkeypatch.setattr(loaded.engine._runtime, "build", lambda *_: Session())
    runner.waiting.add(Nobody(), job_of(loaded.bundle, arch))
    assert runner.run_group()
    assert isinstance(replies.frames[0], Done)
    assert replies.told == [Building(5.0), Alive()]


def test_a_subnet_that_cannot_be_prebuilt_costs_nobody_anything(loaded: Loaded, monkeypatch):
    replies = Replies()
    runner = runner_of(loaded, replies, prebuild=True)
    assert len(runner.unbuilt) > 4
    resident = loaded.engine.resident()[0]
    runner.unbuilt = [arch for arch in runner.unbuilt if not loaded.engine.is_resident(arch)]
    waiting = len(runner.unbuilt)
    with monkeypatch.context() as broken:
        broken.setattr(loaded.engine._runtime, "build", fail)
        runner.build_one()
    unbuilt = Unbuilt("MemoryError: no memory for this subnet")
    assert replies.told == [Building(5.0), unbuilt, Alive()]
    runner.waiting.add(Nobody(), job_of(loaded.bundle, resident))
    assert runner.run_group()
    assert isinstance(replies.frames[0], Done)
    runner.build_one()  # the next
    assert len(runner.unbuilt) == waiting - 2
    assert replies.told[-2:] == [Building(5.0), Alive()]
    # what fails again and again is not tried for all of them
    monkeypatch.setattr(loaded.engine._runtime, "build", fail)
    runner.build_one()
    assert runner.unbuilt
    runner.build_one()
    assert not runner.unbuilt
    assert replies.told.count(unbuilt) == 3
    asked = unbuilt_arch(loaded)  # one who asks for such a subnet hears why
    runner.waiting.add(Nobody(), job_of(loaded.bundle, asked))
    assert runner.run_group()
    assert isinstance(replies.frames[1], Failed)


def test_every_job_is_answered_once_also_one_that_was_cancelled(loaded: Loaded, tmp_path):
    replies, client = Replies(), Nobody()
    inbox: Any = replies
    runners = Runners(inbox, RunFolder(tmp_path), Settings(bundle=Path(), prebuild=False), "w")
    runners.add(1, loaded)
    resident = loaded.engine.resident()[0]
    jobs = [job_of(loaded.bundle, resident, number) for number in (1, 2)]
    replies.coming = [(client, jobs[0]), (client, jobs[1]), (client, Cancel(1))]
    runners._receive(0.0)
    assert replies.frames == [Dropped(1)]
    runners._turn()
    replies.coming = [(client, Cancel(2))]  # it has run
    runners._receive(0.0)
    runners._turn()
    assert [type(one) for one in replies.frames] == [Dropped, Done]


def test_several_http_processes_hear_what_the_others_have_waiting(loaded: Loaded):
    """Jobs with latency budgets, as small as they may become."""
    replies = Replies()
    runner = runner_of(loaded, replies)
    resident = loaded.engine.resident()
    smallest = min(resident, key=loaded.bundle.space.flops)
    urgent, other = Nobody(), Nobody()
    now, fixed = time.monotonic(), job_of(loaded.bundle, smallest)
    runner.waiting.add(urgent, replace(fixed, deadline_s=now + 1))
    for number in range(3):
        aim_s = now + 60 + number if number else None
        runner.waiting.add(other, replace(fixed, id=number, deadline_s=now + 60, aim_s=aim_s))
    runner._max_batch = 1
    replies.connected = [urgent]
    assert runner.run_group()
    assert [type(one) for one in replies.frames] == [Done]  # it is the only one
    runner.waiting.add(urgent, replace(fixed, deadline_s=now + 1))
    replies.connected = [urgent, other]
    assert runner.run_group()
    _, done, others = replies.frames
    assert isinstance(done, Done)
    assert isinstance(others, Others)
    least_ms = loaded.selection.cost_ms(fixed.key)
    assert others.least_ms == pytest.approx(2 * least_ms, rel=0.5)  # corrected since
    assert runner.waiting.others_ms(other, loaded.selection) == 0.0


def test_a_worker_does_not_prebuild_where_two_before_it_died(loaded: Loaded, tmp_path, monkeypatch):
    """Of a runtime that crashes, or because memory was full."""
    settings, replies = Settings(bundle=Path()), Replies()
    inbox: Any = replies
    replies.clients = lambda revision: []  # type: ignore[attr-defined]

    class Death(BaseException):
        """Nothing that this process does now is seen by the next."""

    def die(*arguments: object) -> object:
        raise Death

    def prebuilds() -> int:
        """Those to build of a worker that starts, and then dies of the first."""
        runners = Runners(inbox, RunFolder(tmp_path), settings, "prebuild-0")
        runners.add(1, loaded)
        unbuilt = len(runners._runners[1].unbuilt)
        with monkeypatch.context() as dying, contextlib.suppress(Death):
            dying.setattr(SubnetRunner, "build_one", die)
            dying.setattr(os, "truncate", die)
            runners._turn()
        return unbuilt

    every = prebuilds()
    assert every > 0
    assert prebuilds() == every
    assert prebuilds() == 0
    other = Runners(inbox, RunFolder(tmp_path), settings, "prebuild-1")
    other.add(1, loaded)
    other._turn()
    assert RunFolder(tmp_path).deaths("prebuild-1") == 0
    assert len(other._runners[1].unbuilt) == every - 1


def test_where_a_process_is_cannot_be_noted_on_a_full_disk(tmp_path):
    """And is no reason not to go there."""
    files = RunFolder(tmp_path / "missing")
    with files.at("place"):
        pass
    assert files.deaths("place") == 0
