"""What executes a subnet. A new runtime is a file in this folder and a line here.

Modules are imported when a runtime is asked for, so a server pays only for the one it runs.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession

RUNTIMES: dict[str, str] = {
    "onnxruntime": "shiftnas_serve.runtimes.onnxruntime:OnnxRuntime",
    "tensorrt": "shiftnas_serve.runtimes.tensorrt:TensorRt",
    "torch": "shiftnas_serve.runtimes.torch:Torch",
}
"""Name -> ``module:class``."""


def build_runtime(
    name: str, device: str, threads: int, engine_cache: Path | None = None
) -> AbstractRuntime:
    """The runtime called ``name`` on ``device``. ``engine_cache``: for those that keep engines.

    Raises ValueError for an unknown name, a library that is not installed, or a device that the
    runtime cannot use: nothing falls back to something else.
    """
    if name not in RUNTIMES:
        raise ValueError(f"no runtime {name!r}; there are: {', '.join(RUNTIMES)}")
    module, _, cls = RUNTIMES[name].partition(":")
    kept: dict[str, Path] = {} if engine_cache is None else {"engine_cache": engine_cache}
    return getattr(importlib.import_module(module), cls)(device, threads, **kept)


__all__ = ["RUNTIMES", "AbstractRuntime", "AbstractSession", "build_runtime"]
