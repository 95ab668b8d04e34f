"""Does int8 answer the same on a processor without VNNI? In an emulator of one.

    python -m benchmarks.older_processor models/zoo/cifar10-cnn --emulator qemu-x86_64-static

Takes QEMU's user-mode emulator (Debian's package qemu-user-static). ONNX Runtime chooses its
kernels by the processor, and runs the same subnet here and on an emulated Haswell, which has AVX2
and no VNNI: as this project quantizes it, and as ONNX Runtime's own quantizer does, whose weights
may overflow there; both on the same noise. So does OpenVINO (``--runtime openvino``). Prints how
far logits are apart, and JSON as the last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from benchmarks.parts.timing import machine, noise
from models.bundle.folder import load_bundle
from models.command import command_parser, tells_mistakes
from models.onnx.graph_template import INPUT
from models.onnx.int8 import quantize
from models.quantize import observed_ranges, refuse_unquantizable

CHILD = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
folder, out, runtime, *names = sys.argv[1:]
if runtime == "openvino":
    from shiftnas_serve.runtimes.openvino import OpenVino
    run = lambda data, images: OpenVino("cpu", 1).session_of(data).run(images)
else:
    run = lambda data, images: onnxruntime.InferenceSession(data).run(None, {"images": images})[0]
images = np.load(folder + "/images.npy")
for name in names:
    np.save(f"{folder}/{name}.{out}.npy", run(Path(folder, name + ".onnx").read_bytes(), images))
"""
NAMES = ("int8", "plain")


class _Images(CalibrationDataReader):
    """All at once."""

    def __init__(self, images: np.ndarray) -> None:
        self._left = [{INPUT: images}]

    def get_next(self) -> dict[str, np.ndarray]:
        return self._left.pop() if self._left else {}


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    parser = command_parser("benchmarks.older_processor", __doc__, json=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--emulator", required=True, help="a user-mode QEMU for x86-64")
    parser.add_argument("--cpu", default="Haswell", help="that it emulates (default: Haswell)")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    refuse_unquantizable(bundle)
    arch = bundle.answer(bundle.max_flops)
    images = noise(bundle, arch, options.images)
    model = bundle.build_onnx(arch)
    ours = quantize(model, observed_ranges(model, [images]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", images)
        (folder / "fp32.onnx").write_bytes(model.SerializeToString())
        (folder / "int8.onnx").write_bytes(ours.SerializeToString())
        quantize_static(
            folder / "fp32.onnx",
            folder / "plain.onnx",
            _Images(images),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        emulated = [options.emulator, "-cpu", options.cpu]
        here: list[str] = []
        for out, before, names in (("here", here, ("fp32", *NAMES)), ("there", emulated, NAMES)):
            words = [*before, sys.executable, "-c", CHILD, name, out, options.runtime, *names]
            environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
            subprocess.run(words, check=True, env=environment, stderr=subprocess.DEVNULL)
        fp32 = np.load(folder / "fp32.here.npy")
        rows = {
            kind: [
                distance(np.load(folder / f"{kind}.{out}.npy"), fp32) for out in ("here", "there")
            ]
            + [distance(*(np.load(folder / f"{kind}.{out}.npy") for out in ("there", "here")))]
            for kind in NAMES
        }
    told = f"{bundle.name}, {bundle.space.flops(arch) / 1e6:.1f} MFLOPs, {options.runtime}"
    print(f"{told}: mean distance of logits")
    print(f"                       fp32 to here   fp32 to {options.cpu}   here to {options.cpu}")
    for kind, told in (("int8", "as in a bundle"), ("plain", "ONNX Runtime's own")):
        cells = "".join(f"{100 * share:13.1f} %" for share in rows[kind])
        print(f"{told:22s}{cells}")
    about = {"bundle": bundle.name, "version": bundle.version, "machine": machine()}
    about["runtime"] = options.runtime
    print(json.dumps({"benchmark": "older_processor", **about, "cpu": options.cpu, "rows": rows}))
    return 0


def distance(logits: np.ndarray, exact: np.ndarray) -> float:
    """Mean, beside the mean of what is exact."""
    return float(np.abs(logits - exact).mean() / np.abs(exact).mean())


if __name__ == "__main__":
    sys.exit(main())
