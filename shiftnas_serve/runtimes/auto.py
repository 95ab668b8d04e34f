"""--runtime auto: the fastest runtime that works here, and why the others were passed over."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import structlog

from models.bundle.disk import reason
from models.bundle.folder import Bundle
from shiftnas_serve.runtimes import RUNTIMES, Computing, build_runtime
from shiftnas_serve.runtimes.base import AbstractRuntime

PREFERRED = (
    ("tensorrt", "cuda"),
    ("tensorrt-rtx", "cuda"),
    ("onnxruntime", "cuda"),
    ("onnxruntime", "cpu"),
    ("openvino", "cpu"),  # for bf16; in other precisions the one before it is taken
)
"""Runtimes and devices, the first one that works is taken."""
_LOG = structlog.get_logger("shiftnas_serve.runtimes")


def pick_runtime(
    bundle: Bundle, threads: int, engine_cache: Path | None, precision: Computing = "fp32"
) -> AbstractRuntime:
    """The first that runs the bundle's smallest subnet here. Logs what it is, and what was not.

    Raises ValueError with all reasons where none does.
    """
    passed: list[str] = []
    without = no_driver()
    for name, device in PREFERRED:
        if device == "cuda" and without:  # ONNX Runtime would print pages about it
            passed.append(f"{name} on {device}: {without}")
            continue
        kept = engine_cache if RUNTIMES[name].keeps_engines else None
        try:
            runtime = build_runtime(name, device, threads, kept, precision)
            arch = bundle.answer(bundle.min_flops)
            side = bundle.space.resolution(arch)
            session = runtime.build(bundle, arch)
            session.run(np.zeros((1, 3, side, side), np.float32))
            session.close()
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the next is tried
            passed.append(f"{name} on {device}: {reason(error):.200}")
            continue
        # at the level that is said by default: whoever asks for auto wants to know
        told = {**runtime.describe(), "passed_over": passed}
        if kept != engine_cache:
            told["engine_cache"] = "not used by this runtime"
        _LOG.warning("runtime picked", **told)
        return runtime
    raise ValueError("no runtime works here: " + "; ".join(passed))


def no_driver() -> str:
    """Why no NVIDIA card can be used, on Linux; empty where one may be."""
    try:
        if sys.platform == "linux":
            ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver ({error})"
    return ""
