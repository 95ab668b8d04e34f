"""ONNX Runtime, quiet: ``from models.onnx.ort import onnxruntime``.

By itself it keeps a device id below $HOME and looks up telemetry hosts. It reads this switch when
it is loaded, so everything here imports it from this file.
"""

import os
from functools import cache

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

__all__ = ["onnxruntime", "session_options", "share_arena"]


@cache
def _arena() -> None:
    info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(info, onnxruntime.OrtArenaCfg(0, -1, -1, -1))


def share_arena(options: onnxruntime.SessionOptions) -> None:
    """One arena for the activations of all such sessions of this process: most of them are idle."""
    _arena()
    options.add_session_config_entry("session.use_env_allocators", "1")


def session_options(
    threads: int, device: str, *, convolutional: bool
) -> onnxruntime.SessionOptions:
    """With which subnets are served and measured."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device == "cpu" and not convolutional:
        # Blocked layouts are for convolutions. The exporter has simplified the rest; what ONNX
        # Runtime would still fuse makes it no faster, and a session half as long to create.
        # Planning which activations share memory costs as much again, and the arena, which
        # gives out last what was freed last, is 5 % faster and takes less.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_reuse = False
    return options
