"""ONNX Runtime, quiet: ``from models.onnx.ort import onnxruntime``.

By itself it keeps a device id below $HOME and looks up telemetry hosts. It reads this switch when
it is loaded, so everything here imports it from this file.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

__all__ = ["onnxruntime"]
