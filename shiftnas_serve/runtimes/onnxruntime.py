"""ONNX Runtime on CPU, CUDA or its TensorRT provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from models.bundle.folder import Bundle
from models.onnx.ort import onnxruntime, session_options, share_arena
from models.space.arch import Arch
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession
from shiftnas_serve.runtimes.universal import Universal

# Of a session beside its weights; measured with cifar10-cnn (benchmarks.memory).
_SESSION_BYTES = 450_000

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxSession(AbstractSession):
    """A subnet as an ONNX Runtime session of its own. ``values``: weights that it may refer to."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        values: Sequence[onnxruntime.OrtValue],
        size_bytes: int,
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._values = tuple(values)
        self.size_bytes = size_bytes

    def run(self, images: np.ndarray) -> np.ndarray:
        assert self._session is not None, "this session was closed"
        return np.asarray(self._session.run(["logits"], {"images": images})[0])

    def close(self) -> None:
        self._session = None
        self._values = ()


class OnnxRuntime(AbstractRuntime):
    """``device``: cpu, cuda or tensorrt.

    ONNX Runtime falls back to the CPU with a warning only when a provider cannot load; here that
    is refused, with the reason.
    """

    def __init__(self, device: str, threads: int) -> None:
        if device == "tensorrt":
            self.build_limit_s = 900.0  # as of the tensorrt runtime
        self._device, self._threads = device, threads
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise ValueError(
                f"this build of ONNX Runtime has no {provider}; install onnxruntime-gpu, "
                "or serve with --device cpu"
            )
        if device != "cpu":
            onnxruntime.preload_dlls()
        self._universal: Universal | None = None
        self._of_bundle: Bundle | None = None
        self._lock = Lock()

    def build(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        if self._device == "cpu" and not bundle.space.norms:
            with self._lock:
                if self._universal is None or self._of_bundle is not bundle:
                    self._universal, self._of_bundle = (
                        Universal(bundle, self._create_shared),
                        bundle,
                    )
                return self._universal.bind(arch)
        return self.build_own(bundle, arch)

    def build_own(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        """A session for this subnet alone, even where one could serve many."""
        if self._device != "cpu":
            data = bundle.build_onnx(arch).SerializeToString()
            session = self._create(data, self._options(convolutional=bool(bundle.space.norms)))
            return OnnxSession(session, (), _SESSION_BYTES + len(data))
        if bundle.precision == "int8":
            data = bundle.build_onnx(arch).SerializeToString()
            session = self._create(data, self._options(convolutional=True))
            return OnnxSession(session, (), _SESSION_BYTES + 2 * len(data))
        arrays = bundle.graph_weights(arch)
        data = bundle.build_onnx_apart(arch, arrays).SerializeToString()
        return self.session_of(data, arrays, convolutional=bool(bundle.space.norms))

    def session_of(
        self, data: bytes, arrays: Mapping[str, np.ndarray], *, convolutional: bool
    ) -> OnnxSession:
        """A session on the CPU from a graph without weights, and those (``models.onnx.graph``)."""
        contiguous = [np.ascontiguousarray(array) for array in arrays.values()]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in contiguous]
        options = self._options(convolutional=convolutional)
        options.add_external_initializers(list(arrays), values)
        # The weights are copied once more into the layout that the CPU likes.
        size_bytes = _SESSION_BYTES + 2 * sum(array.nbytes for array in contiguous)
        return OnnxSession(self._create(data, options), values, size_bytes)

    @property
    def shared_bytes(self) -> int:
        return 0 if self._universal is None else self._universal.size_bytes

    def _create_shared(self, data: bytes) -> onnxruntime.InferenceSession:
        options = self._options(convolutional=False)
        # Packed anew for every call, weights that are inputs stay where they are.
        options.add_session_config_entry("session.disable_prepacking", "1")
        return self._create(data, options)

    def _options(self, *, convolutional: bool) -> onnxruntime.SessionOptions:
        options = session_options(self._threads, self._device, convolutional=convolutional)
        if self._device == "cpu":
            share_arena(options)
        return options

    def _create(
        self, data: bytes, options: onnxruntime.SessionOptions
    ) -> onnxruntime.InferenceSession:
        wanted = PROVIDERS[self._device]
        arguments: dict[str, Any] = {"providers": [wanted]}
        session = onnxruntime.InferenceSession(data, options, **arguments)
        if session.get_providers()[0] != wanted:
            raise ValueError(
                f"asked for {wanted}, got {session.get_providers()}: the provider's libraries "
                "(CUDA, cuDNN, TensorRT) do not load; serve with --device cpu or install [gpu]"
            )
        return session

    def describe(self) -> dict[str, str]:
        return {
            "runtime": "onnxruntime",
            "device": self._device,
            "provider": PROVIDERS[self._device],
            "version": onnxruntime.__version__,
        }
