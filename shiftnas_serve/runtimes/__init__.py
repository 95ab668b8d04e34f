"""What executes a subnet. A new runtime is a file in this folder and an entry here.

Modules are imported when a runtime is asked for, so a server pays only for the one it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.bundle.value import Precision
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession

Computing = Literal["fp32", "bf16", "int8"]
"""In what a runtime computes. In bf16 it reads the graph of fp32, and rounds by itself."""


@dataclass(frozen=True)
class RuntimeEntry:
    """What is known of a runtime without importing it.

    ``cls``: ``module:class``. ``library``: the module it needs, which ``extra`` of pyproject.toml
    installs. ``devices``: what it can be asked to run on; it is tested on the first.
    ``keeps_engines``: it takes ``engine_cache``, a folder for what it has built. ``int8``: the
    devices on which it runs 8-bit integers; ``bf16``: those on which it takes ``precision``.
    """

    cls: str
    library: str
    extra: str
    devices: tuple[str, ...]
    keeps_engines: bool = False
    int8: tuple[str, ...] = ()
    bf16: tuple[str, ...] = ()

    def devices_in(self, precision: Computing) -> tuple[str, ...]:
        """The devices on which it computes in that."""
        return {"fp32": self.devices, "bf16": self.bf16, "int8": self.int8}[precision]

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
        f"{_HERE}.openvino:OpenVino",
        "onnxruntime_ep_openvino",
        "openvino",
        ("cpu",),
        int8=("cpu",),
        bf16=("cpu",),
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


def graph_precision(computing: Computing) -> Precision:
    """What bundles have to be in (``Bundle.at``)."""
    return "int8" if computing == "int8" else "fp32"


def check_runtime(
    name: str, device: str, engine_cache: Path | None = None, precision: Computing = "fp32"
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
    if device not in entry.devices_in(precision):
        running = " or ".join(
            f"--runtime {one} --device {on}"
            for one, entry in RUNTIMES.items()
            for on in entry.devices_in(precision)
        )
        raise ValueError(f"the {name} runtime does not run {precision} on {device}; use {running}")


def build_runtime(
    name: str,
    device: str,
    threads: int,
    engine_cache: Path | None = None,
    precision: Computing = "fp32",
) -> AbstractRuntime:
    """The runtime called ``name`` on ``device``. ``engine_cache``: for those that keep engines.

    ``precision``: in what it will compute; the bundles are in ``graph_precision``.

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
    told: dict[str, object] = {} if engine_cache is None else {"engine_cache": engine_cache}
    if precision == "bf16":
        told["precision"] = precision
    return getattr(importlib.import_module(module), cls)(device, threads, **told)


__all__ = [
    "AUTO",
    "RUNTIMES",
    "AbstractRuntime",
    "AbstractSession",
    "Computing",
    "RuntimeEntry",
    "build_runtime",
    "check_runtime",
    "graph_precision",
]
