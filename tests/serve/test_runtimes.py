"""Conformance of every registered runtime, and the engine. A runtime joins by being registered."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from shiftnas_serve.engine import Engine
from shiftnas_serve.runtimes import RUNTIMES, AbstractRuntime, AbstractSession, build_runtime

# Where a runtime is tested, if not on the CPU.
DEVICES = {"tensorrt": "cuda"}
every_runtime = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.gpu) if DEVICES.get(n) == "cuda" else n for n in RUNTIMES],
)


def images_for(bundle: Bundle, arch, batch: int) -> np.ndarray:
    side = bundle.space.resolution(arch)
    return np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)


@every_runtime
def test_every_batch_gives_the_logits_of_each_image(name, bundle: Bundle):
    runtime = build_runtime(name, DEVICES.get(name, "cpu"), 1)
    arch = bundle.answer(bundle.max_flops / 2)
    session = runtime.build(bundle, arch)
    images = images_for(bundle, arch, 5)
    together = session.run(images)
    assert together.shape == (5, len(bundle.labels))
    assert together.dtype == np.float32
    for index in range(5):
        alone = session.run(images[index : index + 1])
        np.testing.assert_allclose(alone[0], together[index], atol=1e-4)
    assert session.size_bytes > 0
    assert runtime.describe()["runtime"] == name
    session.close()
    session.close()


@every_runtime
def test_runtimes_agree_with_the_network_in_torch(name, bundle: Bundle):
    from shiftnas_serve.runtimes.torch import static_net

    runtime = build_runtime(name, DEVICES.get(name, "cpu"), 1)
    for arch in (bundle.space.smallest, bundle.space.largest):
        images = images_for(bundle, arch, 3)
        with torch.no_grad():
            wanted = static_net(bundle, arch)(torch.from_numpy(images)).numpy()
        given = runtime.build(bundle, arch).run(images)
        np.testing.assert_allclose(given, wanted, atol=1e-4 * np.abs(wanted).max())


def test_unusable_runtimes_are_refused_not_replaced():
    with pytest.raises(ValueError, match="there are: onnxruntime"):
        build_runtime("onnx", "cpu", 1)
    with pytest.raises(ValueError, match="no device 'gpu'"):
        build_runtime("onnxruntime", "gpu", 1)
    with pytest.raises(ValueError, match="--device cuda"):
        build_runtime("tensorrt", "cpu", 1)


class CountingRuntime(AbstractRuntime):
    """Builds slowly and counts."""

    def __init__(self) -> None:
        self.builds = 0
        self.gate = threading.Event()

    def build(self, bundle, arch) -> AbstractSession:
        self.gate.wait(5)
        self.builds += 1
        return FakeSession()

    def describe(self) -> dict[str, str]:
        return {}


class FakeSession(AbstractSession):
    size_bytes = 100

    def run(self, images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 10), np.float32)

    def close(self) -> None:
        pass


def test_concurrent_requests_for_one_subnet_build_it_once(bundle: Bundle):
    runtime = CountingRuntime()
    engine = Engine(bundle, runtime, limit_bytes=10**9)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(engine.session, bundle.space.largest) for _ in range(8)]
        runtime.gate.set()
        sessions = {one.result()[0] for one in asked}
    assert runtime.builds == 1
    assert len(sessions) == 1


def test_memory_is_bounded_and_the_least_recently_used_goes_first(bundle: Bundle):
    runtime = CountingRuntime()
    runtime.gate.set()
    engine = Engine(bundle, runtime, limit_bytes=250)
    first, second, third = bundle.archs()[:3]
    engine.session(first)
    engine.session(second)
    engine.session(first)
    engine.session(third)
    assert set(engine.resident()) == {first, third}
    assert engine.size_bytes == 200
    assert engine.evictions == 1


def test_a_failed_build_can_be_tried_again(bundle: Bundle):
    class Failing(CountingRuntime):
        def build(self, bundle, arch) -> AbstractSession:
            self.builds += 1
            if self.builds == 1:
                raise RuntimeError("no memory")
            return FakeSession()

    engine = Engine(bundle, Failing(), limit_bytes=1000)
    with pytest.raises(RuntimeError, match="no memory"):
        engine.session(bundle.space.largest)
    assert engine.session(bundle.space.largest)[0] is not None
