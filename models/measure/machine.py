"""What a table was measured on. No torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from models.onnx.ort import onnxruntime


def machine() -> dict[str, object]:
    """Processor, cores, versions."""
    return {
        "processor": processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def processor() -> str:
    """Its name; "" where the system does not tell it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
