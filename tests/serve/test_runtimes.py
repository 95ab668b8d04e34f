"""Conformance of every registered runtime, and the engine. A runtime joins by being registered."""

from __future__ import annotations

import math
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import shiftnas_serve
from benchmarks.memory import pss_bytes
from models.bundle.folder import Bundle, load_bundle
from models.space.arch import Arch
from models.spaces import get_space
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.http.about import describe_budgets
from shiftnas_serve.runtimes import (
    RUNTIMES,
    AbstractRuntime,
    AbstractSession,
    Computing,
    RuntimeEntry,
    auto,
    build_runtime,
    check_runtime,
    openvino,
    tensorrt_rtx,
)
from shiftnas_serve.runtimes.slice_pool import most_rows, read_shapes, smaller_transposed
from tests.bundles import make_bundle

every_runtime = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                *([pytest.mark.gpu] if entry.devices[0] != "cpu" else []),
                pytest.mark.skipif(not entry.is_installed, reason=f"needs {entry.library}"),
            ],
        )
        for name, entry in RUNTIMES.items()
    ],
)


def test_the_runtimes_of_the_project_itself_are_tested():
    assert RUNTIMES["onnxruntime"].is_installed
    assert RUNTIMES["torch"].is_installed


def runtime_here(name: str, precision: Computing = "fp32") -> AbstractRuntime:
    """The runtime on its first device. OpenVINO's plugin takes Intel's processors only."""
    try:
        return build_runtime(name, RUNTIMES[name].devices[0], 1, precision=precision)
    except ValueError as refused:
        if name != "openvino":
            raise
        pytest.skip(str(refused))


def images_for(bundle: Bundle, arch, batch: int) -> np.ndarray:
    side = bundle.space.resolution(arch)
    return np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)


@every_runtime
def test_every_batch_gives_the_logits_of_each_image(name, bundle: Bundle):
    runtime = runtime_here(name)
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
    from models.nets.deployed import deployed_net

    runtime = runtime_here(name)
    for arch in (bundle.space.smallest, bundle.space.largest):
        images = images_for(bundle, arch, 3)
        with torch.no_grad():
            wanted = deployed_net(bundle, arch)(torch.from_numpy(images)).numpy()
        given = runtime.build(bundle, arch).run(images)
        np.testing.assert_allclose(given, wanted, atol=1e-4 * np.abs(wanted).max())


@every_runtime
def test_half_precision_is_near_and_not_the_same_or_is_refused_in_a_line(name, bundle: Bundle, vit):
    if not RUNTIMES[name].bf16:
        with pytest.raises(ValueError, match="use --runtime openvino --device cpu"):
            build_runtime(name, RUNTIMES[name].devices[0], 1, precision="bf16")
        return
    exact, half = runtime_here(name), runtime_here(name, "bf16")
    for one in (bundle, vit):
        arch = one.answer(one.max_flops)
        images = images_for(one, arch, 3)
        wanted = exact.build(one, arch).run(images)
        given = half.build(one, arch).run(images)
        assert given.dtype == np.float32
        assert 0 < np.abs(given - wanted).max() < 0.03 * np.abs(wanted).max()


def test_a_model_in_half_precision_says_so_and_that_its_figures_are_of_fp32(other_folder, png):
    runtime_here("openvino", "bf16")
    with shiftnas_serve.load(
        other_folder, runtime="auto", precision="bf16", prebuild=False
    ) as engine:
        assert engine.model.runtime["runtime"] == "openvino"
        assert engine.classify(png).model.precision == "bf16"
        told = describe_budgets(engine.model)
    assert (told["model"]["precision"], told["measured_in"]) == ("bf16", "fp32")


def test_unusable_runtimes_are_refused_not_replaced():
    with pytest.raises(ValueError, match="there are: onnxruntime"):
        build_runtime("onnx", "cpu", 1)
    with pytest.raises(ValueError, match="no device 'gpu'"):
        build_runtime("onnxruntime", "gpu", 1)
    with pytest.raises(ValueError, match="--device cuda"):
        build_runtime("tensorrt", "cpu", 1)
    with pytest.raises(ValueError, match="auto picks the device too"):
        check_runtime("auto", "cuda")


def test_a_runtime_without_its_library_is_refused_and_not_tested(monkeypatch):
    absent = RuntimeEntry("nowhere:Nothing", "no_such_library", "absent", ("cpu",))
    monkeypatch.setitem(RUNTIMES, "absent", absent)
    assert not absent.is_installed
    with pytest.raises(ValueError, match=r"needs no_such_library.*pip install -e '.\[absent\]'"):
        build_runtime("absent", "cpu", 1)


def test_the_extras_install_what_runtimes_need():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for name, entry in RUNTIMES.items():
        assert any(
            one.replace("-", "_").startswith(entry.library) for one in extras[entry.extra]
        ), name


def test_auto_takes_the_first_that_works_and_tells_why_not_the_others(bundle: Bundle, monkeypatch):
    """Here that is the CPU: whatever is preferred needs a driver or a library."""
    told = {}
    monkeypatch.setattr(
        auto._LOG, "warning", lambda event, **more: told.update(more), raising=False
    )
    runtime = auto.pick_runtime(bundle, 1, None)
    assert told["passed_over"][0].startswith("tensorrt on cuda: ")
    assert len(told["passed_over"]) == auto.PREFERRED.index((told["runtime"], told["device"]))
    assert runtime.describe()["runtime"] == told["runtime"]

    if not RUNTIMES["tensorrt"].is_installed:
        monkeypatch.setattr(auto, "PREFERRED", (("tensorrt", "cuda"),))
        with pytest.raises(ValueError, match="no runtime works here: tensorrt on cuda: "):
            auto.pick_runtime(bundle, 1, None)


def test_auto_says_what_it_does_not_use_and_takes_errors_without_a_text(
    bundle: Bundle, monkeypatch, tmp_path
):
    told = {}
    monkeypatch.setattr(
        auto._LOG, "warning", lambda event, **more: told.update(more), raising=False
    )
    monkeypatch.setattr(auto, "PREFERRED", (("onnxruntime", "cpu"),) * 2)
    build, fails = auto.build_runtime, [AssertionError()]

    def first_fails(*given):
        if fails:
            raise fails.pop()
        return build(*given)

    monkeypatch.setattr(auto, "build_runtime", first_fails)
    auto.pick_runtime(bundle, 1, tmp_path)
    assert told["passed_over"] == ["onnxruntime on cpu: AssertionError"]
    assert told["engine_cache"] == "not used by this runtime"


def test_tensorrt_for_rtx_without_a_driver_is_refused_in_a_line(monkeypatch, tmp_path):
    """With the plugin in the place of which a library lies that does not load."""
    broken = tmp_path / "libplugin.so"
    broken.write_bytes(b"no library")
    plugin = SimpleNamespace(get_ep_name=lambda: "Rtx", get_library_path=lambda: str(broken))
    monkeypatch.setitem(sys.modules, tensorrt_rtx.LIBRARY, plugin)
    tensorrt_rtx.rtx_devices.cache_clear()
    with pytest.raises(ValueError, match=r"does not load \(.*\): it needs an NVIDIA driver"):
        tensorrt_rtx.TensorRtRtx("cuda", 1)


@every_runtime
def test_a_session_says_one_of_the_known_sources(name, bundle: Bundle):
    session = runtime_here(name).build(bundle, bundle.space.smallest)
    assert session.made in ("built", "universal")
    session.close()


def test_openvino_on_another_processor_is_refused_in_a_line(monkeypatch):
    plugin = SimpleNamespace(get_ep_name=lambda: "OpenVino", get_library_path=lambda: "")
    monkeypatch.setitem(sys.modules, openvino.LIBRARY, plugin)
    monkeypatch.setattr(
        openvino,
        "onnxruntime",
        SimpleNamespace(register_execution_provider_library=lambda *_: None, get_ep_devices=list),
    )
    # not the cached one: this process may have registered the real plugin, which it can do once
    monkeypatch.setattr(openvino, "openvino_cpu", openvino.openvino_cpu.__wrapped__)
    with pytest.raises(ValueError, match="lists no processor here: it takes Intel's only"):
        openvino.OpenVino("cpu", 1)


def test_half_precision_is_refused_where_openvino_lists_no_instructions_for_it(monkeypatch):
    older = SimpleNamespace(ep_metadata={"OPTIMIZATION_CAPABILITIES": "WINOGRAD FP32 INT8"})
    monkeypatch.setattr(openvino, "openvino_cpu", lambda: older)
    assert openvino.OpenVino("cpu", 1)
    with pytest.raises(ValueError, match=r"no instructions for bf16 .*--precision fp32"):
        openvino.OpenVino("cpu", 1, precision="bf16")


def random_archs(bundle: Bundle, count: int) -> list[Arch]:
    rng = np.random.default_rng(0)
    space = bundle.space
    sizes = [len(decision.choices) for decision in space.decisions]
    return [space.from_indices([rng.integers(size) for size in sizes]) for _ in range(count)]


def test_one_universal_session_answers_as_every_subnets_own_network(vit: Bundle):
    """Whatever order subnets come in, and whatever ran before them."""
    from models.nets.deployed import deployed_net

    runtime = build_runtime("onnxruntime", "cpu", 1)
    archs = [vit.space.smallest, *random_archs(vit, 30), vit.space.largest]
    sessions = [runtime.build(vit, arch) for arch in archs]
    assert {session.made for session in sessions} == {"universal"}
    for _ in range(2):
        for arch, session in zip(archs, sessions, strict=True):
            images = images_for(vit, arch, 2)
            with torch.no_grad():
                wanted = deployed_net(vit, arch)(torch.from_numpy(images)).numpy()
            given = session.run(images)
            np.testing.assert_allclose(given, wanted, atol=1e-4 * np.abs(wanted).max())


def test_subnets_without_batchnorm_share_their_weights(vit: Bundle):
    """All of them together take a small multiple of the supernet, and nothing when they go."""
    runtime = build_runtime("onnxruntime", "cpu", 1)
    supernet_bytes = sum(weight.nbytes for weight in vit.weights.values())
    sessions = [runtime.build(vit, arch) for arch in random_archs(vit, 200)]
    pool = runtime._universal.pool
    assert pool.size_bytes <= 3 * supernet_bytes
    assert sum(session.size_bytes for session in sessions) / 200 < 50_000
    for session in sessions:
        session.close()
    assert pool.size_bytes == 0


def test_parts_are_stored_the_way_round_that_takes_less():
    widths, heads, ratios = (192, 216, 240), (3, 4), (3.5, 4.0)
    shapes = {
        "qkv": {(width, 192 * head) for width in widths for head in heads},
        "fc1": {(width, int(width * ratio)) for width in widths for ratio in ratios},
        "fc2": {(int(width * ratio), width) for width in widths for ratio in ratios},
        "square": {(8, 8), (4, 4)},
        "bias": {(8,), (4,)},
    }
    assert smaller_transposed(shapes, shapes) == {"fc1"}
    assert smaller_transposed(shapes, {"fc2", "qkv"}) == set()


def test_vit_tiny_stores_all_parts_of_its_weights_in_a_small_multiple_of_them():
    """By arithmetic alone: 500 subnets of this size take too long here (benchmarks.memory)."""
    space = get_space("vit-tiny")
    whole = sum(math.prod(weight.shape_at(space.largest)) for weight in space.weights)
    permutations = dict.fromkeys(
        (w.name for w in space.weights if len(w.shape_at(space.largest)) == 2), (1, 0)
    )
    shapes = read_shapes(space, permutations)
    transposed = smaller_transposed(shapes, permutations)
    most = [
        most_rows({shape[::-1] for shape in some} if name in transposed else some)
        for name, some in shapes.items()
    ]
    parts = sum(rows * math.prod(width) for one in most for width, rows in one.items())
    assert whole < parts < 2.5 * whole


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("space", ["nano-cnn", "nano-vit"])
def test_memory_does_not_drift_over_evictions(space, tmp_path):
    """10,000 subnets built and evicted: below 1 % more than after the first 2,000."""
    bundle = load_bundle(make_bundle(space, tmp_path / "bundle"))
    runtime = build_runtime("onnxruntime", "cpu", 1)
    archs = random_archs(bundle, 300) if space == "nano-vit" else list(bundle.archs())
    engine = Sessions(bundle, runtime, limit_bytes=1)
    seen = []
    images = {arch: images_for(bundle, arch, 1) for arch in archs}
    rounds = 10_000 // len(archs)
    for turn in range(rounds):
        for arch in archs:
            engine.run(arch, images[arch])
        if turn % max(rounds // 20, 1) == 0:  # always with the same one resident
            seen.append(pss_bytes())
    assert engine.evictions > 9000
    fifth = len(seen) // 5
    assert min(seen[-fifth:]) < 1.01 * max(seen[:fifth]), seen


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
    engine = Sessions(bundle, runtime, limit_bytes=10**9)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(engine.session, bundle.space.largest) for _ in range(8)]
        runtime.gate.set()
        sessions = {one.result()[0] for one in asked}
    assert runtime.builds == 1
    assert len(sessions) == 1


def test_memory_is_bounded_and_the_least_recently_used_goes_first(bundle: Bundle):
    runtime = CountingRuntime()
    runtime.gate.set()
    engine = Sessions(bundle, runtime, limit_bytes=250)
    first, second, third = bundle.archs()[:3]
    engine.session(first)
    engine.session(second)
    engine.session(first)
    engine.session(third)
    assert set(engine.resident()) == {first, third}
    assert engine.size_bytes == 200
    assert engine.evictions == 1


def test_pinned_subnets_stay(bundle: Bundle):
    runtime = CountingRuntime()
    runtime.gate.set()
    first, second, third = bundle.archs()[:3]
    engine = Sessions(bundle, runtime, limit_bytes=150, pinned=[first])
    for arch in (first, second, third):
        engine.session(arch)
    assert set(engine.resident()) == {first, third}


def test_an_answer_says_where_its_session_came_from(bundle: Bundle, vit: Bundle):
    for one, made in ((bundle, "built"), (vit, "universal")):
        engine = Sessions(one, build_runtime("onnxruntime", "cpu", 1), 10**9)
        arch = one.answer(one.max_flops)
        images = images_for(one, arch, 1)
        assert engine.run(arch, images).source == made
        assert engine.run(arch, images).source == "resident"


def test_a_failed_build_can_be_tried_again(bundle: Bundle):
    class Failing(CountingRuntime):
        def build(self, bundle, arch) -> AbstractSession:
            self.builds += 1
            if self.builds == 1:
                raise RuntimeError("no memory")
            return FakeSession()

    engine = Sessions(bundle, Failing(), limit_bytes=1000)
    with pytest.raises(RuntimeError, match="no memory"):
        engine.session(bundle.space.largest)
    assert engine.session(bundle.space.largest)[0] is not None
