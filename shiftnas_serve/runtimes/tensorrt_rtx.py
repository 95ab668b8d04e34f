"""TensorRT for RTX: NVIDIA's plugin provider of ONNX Runtime, with its libraries in one wheel.

For GeForce RTX and RTX PRO cards from Ampere on, and not for data-centre cards such as H100: those
take ``tensorrt`` or ``onnxruntime --device cuda``. Nothing but the driver is needed beside the
extra ``tensorrt-rtx`` of pyproject.toml. The provider is Apache-2.0; the TensorRT libraries in the
wheel are under NVIDIA's own agreement. Without a driver it is refused, which is all that this
project's CI can test; the marker ``gpu`` runs its conformance where there is a card.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

import numpy as np

from models.bundle.folder import Bundle
from models.onnx.ort import onnxruntime
from models.space.arch import Arch
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession
from shiftnas_serve.runtimes.onnxruntime import OnnxSession

LIBRARY = "onnxruntime_ep_nv_tensorrt_rtx"
OPTIMAL_BATCH, MAX_BATCH = 8, 32


@cache
def rtx_devices() -> tuple[onnxruntime.OrtEpDevice, ...]:
    """The cards that the plugin can use. A provider can be registered once in a process.

    Raises ValueError with the reason where it does not load, or finds none.
    """
    plugin = importlib.import_module(LIBRARY)
    name = plugin.get_ep_name()
    try:
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own classes are not public
        reason = str(error).rsplit("with error: ", 1)[-1]
        raise ValueError(
            f"TensorRT for RTX does not load ({reason}): it needs an NVIDIA driver for CUDA 13; "
            "serve with --runtime onnxruntime --device cpu"
        ) from None
    found = tuple(one for one in onnxruntime.get_ep_devices() if one.ep_name == name)
    if not found:
        raise ValueError(
            "TensorRT for RTX finds no card that it supports (GeForce RTX or RTX PRO, Ampere or "
            "newer); serve with --runtime onnxruntime --device cuda"
        )
    return found


class RtxSession(OnnxSession):
    """Takes batches in parts of at most ``MAX_BATCH``, for which its engine is made."""

    def run(self, images: np.ndarray) -> np.ndarray:
        parts = [images[i : i + MAX_BATCH] for i in range(0, len(images), MAX_BATCH)]
        return np.concatenate([super(RtxSession, self).run(part) for part in parts])


class TensorRtRtx(AbstractRuntime):
    """``device``: cuda, the first card. ``engine_cache``: a folder for kernels that it compiled."""

    build_limit_s = 300.0

    def __init__(self, device: str, threads: int, engine_cache: Path | None = None) -> None:
        self._device = rtx_devices()[0]
        self._engine_cache = engine_cache

    def build(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        data = bundle.build_onnx(arch).SerializeToString()
        side = bundle.space.resolution(arch)
        batches = {"min": 1, "opt": OPTIMAL_BATCH, "max": MAX_BATCH}
        told = {
            f"nv_profile_{name}_shapes": f"images:{batch}x3x{side}x{side}"
            for name, batch in batches.items()
        }
        if self._engine_cache is not None:
            told["nv_runtime_cache_path"] = str(self._engine_cache)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_provider_for_devices([self._device], told)
        # what the provider leaves to the CPU would be slow, and say nothing
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return RtxSession(onnxruntime.InferenceSession(data, options), (), len(data))

    def describe(self) -> dict[str, str]:
        return {
            "runtime": "tensorrt-rtx",
            "device": "cuda",
            "provider": self._device.ep_name,
            "version": importlib.import_module(LIBRARY).__version__,
        }
