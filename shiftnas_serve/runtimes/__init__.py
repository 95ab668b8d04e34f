"""What executes a subnet. A new runtime is a file in this folder and an entry here.

Modules are imported when a runtime is asked for, so a server pays only for the one it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from models.bundle.value import Precision
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession


@dataclass(frozen=True)
class RuntimeEntry:
    """What is known of a runtime without importing it.

    ``cls``: ``module:class``. ``library``: the module it needs, which ``extra`` of pyproject.toml
    installs. ``devices``: what it can be asked to run on; it is tested on the first.
    ``keeps_engines``: it takes ``engine_cache``, a folder for what it has built. ``int8``: the
    devices on which it runs 8-bit integers.
    """

    cls: str
    library: str
    extra: str
    devices: tuple[str, ...]
    keeps_engines: bool = False
    int8: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether its library is there."""
        return importlib.util.find_spec(self.library) is not None


_HERE = "shiftnas_serve.runtimes"
RUNTIMES: dict[str, RuntimeEntry] = {
    "onnxruntime": RuntimeEntry(
        f"{_HERE}.onnxruntime:OnnxRuntime",
        "onnxruntime",
        "gpu",
        ("cpu", "cuda", "tensorrt"),
        int8=("cpu",),
    ),
    "openvino": RuntimeEntry(
        f"{_HERE}.openvino:OpenVino", "onnxruntime_ep_openvino", "openvino", ("cpu",)
    ),
    "tensorrt": RuntimeEntry(
        f"{_HERE}.tensorrt:TensorRt", "tensorrt", "tensorrt", ("cuda",), keeps_engines=True
    ),
    "tensorrt-rtx": RuntimeEntry(
        f"{_HERE}.tensorrt_rtx:TensorRtRtx",
        "onnxruntime_ep_nv_tensorrt_rtx",
        "tensorrt-rtx",
        ("cuda",),
        keeps_engines=True,
    ),
    "torch": RuntimeEntry(f"{_HERE}.torch:Torch", "torch", "train", ("cpu", "cuda")),
}

AUTO = "auto"
"""For the fastest runtime that works here (``auto.py``)."""


def check_runtime(
    name: str, device: str, engine_cache: Path | None = None, precision: Precision = "fp32"
) -> None:
    """Raises ValueError for an unknown runtime, and for what it cannot do wherever it runs."""
    if name == AUTO:
        if device != "cpu":  # the default
            raise ValueError(
                f"runtime auto picks the device too, and the device is {device!r}; leave it out, "
                "or name a runtime"
            )
        return
    if name not in RUNTIMES:
        raise ValueError(f"no runtime {name!r}; there are: {', '.join(RUNTIMES)}, {AUTO}")
    entry = RUNTIMES[name]
    if device not in entry.devices:
        allowed = " or ".join(f"--device {one}" for one in entry.devices)
        raise ValueError(f"the {name} runtime has no device {device!r}; use {allowed}")
    if engine_cache is not None and not entry.keeps_engines:
        keeping = ", ".join(one for one, entry in RUNTIMES.items() if entry.keeps_engines)
        raise ValueError(
            f"engine_cache is for runtimes that keep engines ({keeping}), and the runtime is "
            f"{name}; choose another runtime, or leave it out"
        )
    if precision == "int8" and device not in entry.int8:
        running = " or ".join(
            f"--runtime {one} --device {on}" for one, entry in RUNTIMES.items() for on in entry.int8
        )
        raise ValueError(f"the {name} runtime does not run int8 on {device}; use {running}")


def build_runtime(
    name: str,
    device: str,
    threads: int,
    engine_cache: Path | None = None,
    precision: Precision = "fp32",
) -> AbstractRuntime:
    """The runtime called ``name`` on ``device``. ``engine_cache``: for those that keep engines.

    ``precision``: of the bundles that it will run.

    Raises ValueError for an unknown name, a library that is not installed, or a device that the
    runtime cannot use: nothing falls back to something else.
    """
    check_runtime(name, device, engine_cache, precision)
    entry = RUNTIMES[name]
    if not entry.is_installed:
        raise ValueError(
            f"the {name} runtime needs {entry.library}, which is not installed; "
            f"pip install -e '.[{entry.extra}]', or choose another with --runtime"
        )
    module, _, cls = entry.cls.partition(":")
    kept: dict[str, Path] = {} if engine_cache is None else {"engine_cache": engine_cache}
    return getattr(importlib.import_module(module), cls)(device, threads, **kept)


__all__ = [
    "AUTO",
    "RUNTIMES",
    "AbstractRuntime",
    "AbstractSession",
    "RuntimeEntry",
    "build_runtime",
    "check_runtime",
]
