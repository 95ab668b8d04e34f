"""ONNX Runtime on CPU, CUDA or its TensorRT provider."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from models.arch import Arch
from models.bundle import Bundle
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxSession(AbstractSession):
    """A subnet as an ONNX Runtime session, with its weights inside."""

    def __init__(self, session: onnxruntime.InferenceSession, size_bytes: int) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self.size_bytes = size_bytes

    def run(self, images: np.ndarray) -> np.ndarray:
        assert self._session is not None, "this session was closed"
        return np.asarray(self._session.run(["logits"], {"images": images})[0])

    def close(self) -> None:
        self._session = None


class OnnxRuntime(AbstractRuntime):
    """``device``: cpu, cuda or tensorrt.

    ONNX Runtime falls back to the CPU with a warning only when a provider cannot load; here that
    is refused, with the reason.
    """

    def __init__(self, device: str, threads: int) -> None:
        if device not in PROVIDERS:
            raise ValueError(f"onnxruntime has no device {device!r}; one of {', '.join(PROVIDERS)}")
        self._device, self._threads = device, threads
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise ValueError(
                f"this build of ONNX Runtime has no {provider}; install onnxruntime-gpu, "
                "or serve with --device cpu"
            )
        if device != "cpu":
            onnxruntime.preload_dlls()

    def build(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        data = bundle.build_onnx(arch).SerializeToString()
        wanted = PROVIDERS[self._device]
        arguments: dict[str, Any] = {"providers": [wanted]}
        session = onnxruntime.InferenceSession(data, options, **arguments)
        if session.get_providers()[0] != wanted:
            raise ValueError(
                f"asked for {wanted}, got {session.get_providers()}: the provider's libraries "
                "(CUDA, cuDNN, TensorRT) do not load; serve with --device cpu or install [gpu]"
            )
        # The weights are copied once more into the layout that the CPU likes.
        return OnnxSession(session, 2 * len(data))

    def describe(self) -> dict[str, str]:
        return {
            "runtime": "onnxruntime",
            "device": self._device,
            "provider": PROVIDERS[self._device],
            "version": onnxruntime.__version__,
        }
