"""What a worker makes of its jobs: its own thread, no processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.arch import Arch
from models.bundle import Bundle
from shiftnas_serve.frames import Done, FrameReader, Job, arch_key
from shiftnas_serve.inbox import Client
from shiftnas_serve.settings import Settings
from shiftnas_serve.worker import Loaded, SubnetRunner, load_revision


class Replies:
    """In the place of an ``Inbox``: keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[object] = []

    def send(self, client: object, data: bytes) -> None:
        self.frames += FrameReader().feed(data)

    def tell_all(self, frame: object, revision: int | None = None) -> None:
        pass


class Nobody(Client):
    """A client without a connection."""

    def __init__(self) -> None:
        pass


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
