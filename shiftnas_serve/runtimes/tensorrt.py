"""TensorRT engines built straight from a subnet's ONNX graph, on a CUDA device.

Not run by the tests of this project's CI, which has no GPU: the marker ``gpu`` runs its
conformance where there is one. Needs TensorRT 10.14 or 11, and torch for its buffers: the extra
``tensorrt`` of pyproject.toml. Networks are strongly typed, as TensorRT 11 has them only: what the
graph says in fp32 is computed from fp32, with TF32 where the card has it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from models.bundle.folder import Bundle
from models.space.arch import Arch
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession
from shiftnas_serve.runtimes.engine_files import EngineFiles

MAX_BATCH = 32


def _import() -> tuple[Any, Any]:
    try:
        tensorrt = importlib.import_module("tensorrt")  # has no types, and is rarely installed
        import torch
    except ImportError as error:
        raise ValueError(
            f"the tensorrt runtime needs {error.name}, which is not installed; "
            "pip install -e '.[tensorrt]', or use onnxruntime"
        ) from None
    if not torch.cuda.is_available():
        raise ValueError("the tensorrt runtime needs a CUDA device and sees none")
    return tensorrt, torch


class TensorRtSession(AbstractSession):
    """An engine and its execution context."""

    def __init__(self, serialized: bytes, num_classes: int) -> None:
        self._tensorrt, self._torch = _import()
        logger = self._tensorrt.Logger(self._tensorrt.Logger.WARNING)
        self._engine = self._tensorrt.Runtime(logger).deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise RuntimeError("TensorRT does not take the engine; its log above says why")
        self._context = self._engine.create_execution_context()
        self._num_classes = num_classes
        # A context is for one thread at a time. (TensorRT's bindings release the GIL meanwhile.)
        self._lock = Lock()
        self.size_bytes = len(serialized)

    def run(self, images: np.ndarray) -> np.ndarray:
        assert self._context is not None, "this session was closed"
        with self._lock:
            parts = [self._run(images[i : i + MAX_BATCH]) for i in range(0, len(images), MAX_BATCH)]
        return np.concatenate(parts)

    def _run(self, images: np.ndarray) -> np.ndarray:
        torch = self._torch
        given = torch.from_numpy(images).cuda()
        logits = torch.empty((len(images), self._num_classes), device="cuda")
        self._context.set_input_shape("images", tuple(given.shape))
        self._context.set_tensor_address("images", given.data_ptr())
        self._context.set_tensor_address("logits", logits.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT refused to execute the engine")
        stream.synchronize()
        return logits.cpu().numpy()

    def close(self) -> None:
        self._context = self._engine = None


class TensorRt(AbstractRuntime):
    """``device``: cuda. ``engine_cache``: a folder in which engines outlive the process."""

    build_limit_s = 900.0  # every kernel is timed, on a device that others may use

    def __init__(self, device: str, threads: int, engine_cache: Path | None = None) -> None:
        self._tensorrt, torch = _import()
        self._gpu = torch.cuda.get_device_name()
        self._files = None if engine_cache is None else EngineFiles(engine_cache)
        self._timings = ("timings", f"TensorRT {self._tensorrt.__version__}", self._gpu)

    def build(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        if self._files is None:
            serialized = self.serialize(bundle, arch)
        else:
            serialized = self._files.get(
                bundle.version,  # of all files, the weights among them
                bundle.space.arch_id(arch),
                f"TensorRT {self._tensorrt.__version__}, typed, batches to {MAX_BATCH}",
                self._gpu,
                build=lambda: self.serialize(bundle, arch),
            )
        return TensorRtSession(serialized, bundle.space.num_classes)

    def serialize(self, bundle: Bundle, arch: Arch) -> bytes:
        """The engine of a subnet, for batches of 1 to 32. Raises RuntimeError with the reason."""
        trt = self._tensorrt
        builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
        if not parser.parse(bundle.build_onnx(arch).SerializeToString()):
            reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise RuntimeError(f"TensorRT cannot read the subnet's graph: {reasons}")
        side = bundle.space.resolution(arch)
        profile = builder.create_optimization_profile()
        shapes = [(batch, 3, side, side) for batch in (1, 8, MAX_BATCH)]
        profile.set_shape("images", *shapes)
        config = builder.create_builder_config()
        config.add_optimization_profile(profile)
        # subnets have layers in common: what was timed for one is not timed for the next
        kept = None if self._files is None else self._files.read(*self._timings)
        timings = config.create_timing_cache(kept or b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise RuntimeError("TensorRT built no engine; its log above says why")
        if self._files is not None:
            self._files.write(bytes(timings.serialize()), *self._timings)
        return bytes(engine)

    def describe(self) -> dict[str, str]:
        return {"runtime": "tensorrt", "device": "cuda", "version": self._tensorrt.__version__}
