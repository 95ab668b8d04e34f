"""Engines that outlive a process: built once for what they depend on, whatever the disk does."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shiftnas_serve.runtimes import RUNTIMES, build_runtime, tensorrt
from shiftnas_serve.runtimes.engine_files import EngineFiles
from shiftnas_serve.settings import load_settings

ENGINE = b"a program" * 1000


@pytest.fixture
def builds() -> list[str]:
    return []


def get(folder: Path, builds: list[str], *key: str) -> bytes:
    """As a new process would."""

    def build() -> bytes:
        builds.append("/".join(key))
        return ENGINE

    return EngineFiles(folder).get(*key, build=build)


def test_an_engine_is_built_once_for_a_key(tmp_path, builds):
    for key in (("a", "b"), ("a", "b"), ("ab",), ("a", "c"), ("a", "b")):
        assert get(tmp_path / "made" / "here", builds, *key) == ENGINE
    assert builds == ["a/b", "ab", "a/c"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_built_again(tmp_path, builds, damage):
    get(tmp_path, builds, "key")
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    else:
        content = content[: len(content) // 2 if damage == "cut" else 0]
    file.write_bytes(content)
    assert get(tmp_path, builds, "key") == ENGINE
    assert get(tmp_path, builds, "key") == ENGINE
    assert builds == ["key", "key"]


def test_a_full_disk_stops_nothing_and_leaves_nothing(tmp_path, builds, monkeypatch):
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert get(tmp_path, builds, "key") == ENGINE
    assert list(tmp_path.iterdir()) == []
    assert get(tmp_path, builds, "key") == ENGINE
    assert len(builds) == 2


def test_a_folder_that_cannot_be_made_is_a_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"engine_cache: cannot make .*file/folder"):
        EngineFiles(tmp_path / "file" / "folder")


def test_tensorrt_builds_no_engine_twice_and_another_for_other_weights_or_gpus(
    tmp_path, bundle, other_folder, monkeypatch
):
    """TensorRT stands in for itself: its own conformance needs a GPU (test_runtimes.py)."""
    from models.bundle.folder import load_bundle

    other = load_bundle(other_folder)
    built = []
    gpus = ["H100"]
    cuda = SimpleNamespace(get_device_name=lambda: gpus[-1])
    fakes = SimpleNamespace(__version__="10.14"), SimpleNamespace(cuda=cuda)
    monkeypatch.setitem(RUNTIMES, "tensorrt", replace(RUNTIMES["tensorrt"], library="json"))
    monkeypatch.setattr(tensorrt, "_import", lambda: fakes)
    monkeypatch.setattr(tensorrt, "TensorRtSession", lambda serialized, classes: serialized)

    def serialize(runtime, bundle, arch):
        built.append((bundle.version, arch, gpus[-1]))
        return ENGINE

    monkeypatch.setattr(tensorrt.TensorRt, "serialize", serialize)
    smallest, largest = bundle.space.smallest, bundle.space.largest
    asked = [(bundle, smallest), (bundle, largest), (other, largest), (bundle, largest)]
    for here in ("H100", "H200", "H100"):
        gpus.append(here)
        runtime = build_runtime("tensorrt", "cuda", 1, tmp_path)
        for one, arch in asked:
            assert runtime.build(one, arch) == ENGINE
    assert built == [(b.version, a, gpu) for gpu in ("H100", "H200") for b, a in asked[:3]]
    assert bundle.version != other.version
    without = build_runtime("tensorrt", "cuda", 1)
    without.build(bundle, largest)
    without.build(bundle, largest)
    assert len(built) == 8


def test_what_tensorrt_timed_for_one_subnet_it_knows_for_the_next(tmp_path, bundle, monkeypatch):
    """With a stand-in that takes the calls of TensorRT's Python documentation, 10.14 and 11."""
    known: list[bytes] = []

    class Config:
        def create_timing_cache(self, serialized: bytes) -> SimpleNamespace:
            known.append(serialized)
            return SimpleNamespace(serialize=lambda: serialized + b"timed")

        def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
            return not ignore_mismatch

        def add_optimization_profile(self, profile: SimpleNamespace) -> int:
            return 0

    class Builder:
        def __init__(self, logger: object) -> None: ...
        def create_network(self, flags: int) -> str:
            assert flags == 1 << 1, "strongly typed"
            return "network"

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> SimpleNamespace:
            return SimpleNamespace(set_shape=lambda *_: None)

        def build_serialized_network(self, network: str, config: Config) -> bytes:
            return ENGINE

    class Logger:
        WARNING = 2

        def __init__(self, level: int) -> None: ...

    fake = SimpleNamespace(
        __version__="11.4",
        Builder=Builder,
        Logger=Logger,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        OnnxParser=lambda network, logger: SimpleNamespace(parse=lambda data: True),
    )
    cuda = SimpleNamespace(get_device_name=lambda: "H100")
    monkeypatch.setitem(RUNTIMES, "tensorrt", replace(RUNTIMES["tensorrt"], library="json"))
    monkeypatch.setattr(tensorrt, "_import", lambda: (fake, SimpleNamespace(cuda=cuda)))
    monkeypatch.setattr(tensorrt, "TensorRtSession", lambda serialized, classes: serialized)
    for _ in range(2):  # as two processes
        runtime = build_runtime("tensorrt", "cuda", 1, tmp_path)
        for arch in (bundle.space.smallest, bundle.space.largest):
            assert runtime.build(bundle, arch) == ENGINE
    assert known == [b"", b"timed"]
    build_runtime("tensorrt", "cuda", 1).build(bundle, bundle.space.smallest)
    assert known[-1] == b""


def test_engines_are_kept_for_runtimes_that_have_some():
    given = {"engine_cache": "/engines", "runtime": "tensorrt", "device": "cuda"}
    assert load_settings(given, environment={}).engine_cache == Path("/engines")
    with pytest.raises(ValueError, match=r"engine_cache .* runtime is onnxruntime"):
        load_settings({"engine_cache": "/engines"}, environment={})
