"""OpenVINO: Intel's plugin provider of ONNX Runtime, with OpenVINO's libraries in one wheel.

For Intel processors: on others it lists no device and is refused. Answers are computed in the
precision that was asked for; OpenVINO by itself takes half precision where a processor has it.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from importlib.metadata import version

from models.bundle.folder import Bundle
from models.onnx.ort import onnxruntime
from models.space.arch import Arch
from shiftnas_serve.runtimes import Computing
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession
from shiftnas_serve.runtimes.onnxruntime import OnnxSession

LIBRARY = "onnxruntime_ep_openvino"
# An estimate, of a session beside its weights, of which it keeps several copies.
_SESSION_BYTES = 4_000_000


@cache
def openvino_cpu() -> onnxruntime.OrtEpDevice:
    """The processor, for the plugin. A provider can be registered once in a process.

    Raises ValueError where the plugin does not take this processor.
    """
    plugin = importlib.import_module(LIBRARY)
    name = plugin.get_ep_name()
    onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    for one in onnxruntime.get_ep_devices():
        if one.ep_name == name and one.ep_metadata.get("ov_device") == "CPU":
            return one
    raise ValueError(
        "OpenVINO's plugin lists no processor here: it takes Intel's only; "
        "serve with --runtime onnxruntime"
    )


class OpenVino(AbstractRuntime):
    """``device``: cpu."""

    build_limit_s = 30.0  # it compiles each subnet, in about a second

    def __init__(self, device: str, threads: int, precision: Computing = "fp32") -> None:
        self._device = openvino_cpu()
        able = self._device.ep_metadata.get("OPTIMIZATION_CAPABILITIES", "").split()
        if precision == "bf16" and "BF16" not in able:
            raise ValueError(
                "this processor has no instructions for bf16 (AMX, AVX512_BF16), OpenVINO says; "
                "serve with --precision fp32"
            )
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            # servers beside each other would pin themselves to the same cores
            "ENABLE_CPU_PINNING": "NO",
        }
        self._told = {"load_config": json.dumps({"CPU": config})}

    def build(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        return self.session_of(bundle.build_onnx(arch).SerializeToString())

    def session_of(self, data: bytes) -> OnnxSession:
        """A session from a self-contained graph."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_provider_for_devices([self._device], self._told)
        # what the provider leaves to ONNX Runtime would say nothing
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        session = onnxruntime.InferenceSession(data, options)
        return OnnxSession(session, (), _SESSION_BYTES + 4 * len(data))

    def describe(self) -> dict[str, str]:
        return {
            "runtime": "openvino",
            "device": "cpu",
            "provider": self._device.ep_name,
            "version": version(LIBRARY),
        }
