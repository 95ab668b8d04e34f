"""Write subnets of a bundle to files: ``python -m shiftnas_serve.export --help``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from models.bundle.folder import Bundle, load_bundle
from models.bundle.value import Precision
from models.command import command_parser, tells_mistakes
from models.extras import require
from models.onnx import OPSET
from models.onnx.graph_template import INPUT, OUTPUT
from models.space.arch import Arch
from models.space.describe import read_arch
from models.space.quantity import parse_flops

_DESCRIPTION = f"""\
Write subnets of a bundle to files that need neither the bundle nor this project
to run.

  python -m shiftnas_serve.export BUNDLE --flops 4M --format onnx --out 4m.onnx
  python -m shiftnas_serve.export BUNDLE --flops 72M 200M --format triton --out repository

onnx      self-contained ONNX model, opset {OPSET}:
          images float32 (batch, 3, side, side) -> logits
tensorrt  serialized engine for this machine's GPU (needs TensorRT and a GPU)
torch     torch.export program, .pt2 (needs torch)
triton    a model repository of Triton's ONNX Runtime backend: a folder with a
          model for each budget, its config.pbtxt and labels

The ONNX model (in metadata_props) and the torch program (in extra_files) say
how to use them: id, flops, params, arch, model, labels in the order of the
logits, and preprocess, all as JSON. --json prints the same, which a TensorRT
engine needs beside it. docs/export.md says how to prepare an image, and has a
program of 40 lines that does it and runs the model."""


def export_onnx(bundle: Bundle, arch: Arch) -> bytes:
    """A self-contained ONNX model."""
    return bundle.build_onnx(arch).SerializeToString()


def export_tensorrt(bundle: Bundle, arch: Arch) -> bytes:
    """A serialized engine. Raises ValueError without TensorRT or a GPU."""
    from shiftnas_serve.runtimes.tensorrt import TensorRt

    return TensorRt("cuda", 1).serialize(bundle, arch)


def export_torch(bundle: Bundle, arch: Arch) -> bytes:
    """A torch.export program. Raises ValueError without torch."""
    require("train", "torch")
    from models.nets.deployed import exported_program

    return exported_program(bundle, arch)


FORMATS: dict[str, Callable[[Bundle, Arch], bytes]] = {
    "onnx": export_onnx,
    "tensorrt": export_tensorrt,
    "torch": export_torch,
}

_SUFFIXES = {".onnx": "onnx", ".pt2": "torch", ".engine": "tensorrt", ".plan": "tensorrt"}
"""Of files that people call so: the format."""

TRITON = "triton"
_TRITON_BATCH = 32
_TRITON_CONFIG = """\
name: {name}
platform: "onnxruntime_onnx"
max_batch_size: {batch}
input {{
  name: "{INPUT}"
  data_type: TYPE_FP32
  dims: [3, {side}, {side}]
}}
output {{
  name: "{OUTPUT}"
  data_type: TYPE_FP32
  dims: [{classes}]
  label_filename: "labels.txt"
}}
dynamic_batching {{}}
"""


def write_triton(bundle: Bundle, archs: Sequence[Arch], folder: Path) -> list[str]:
    """A model repository for Triton's ONNX Runtime backend; the names of its models.

    A model takes prepared images (``docs/export.md``), not photos. Raises ValueError for a folder
    that is there already.
    """
    if folder.exists():
        raise ValueError(f"--out {folder} is there already: name a new folder")
    names = []
    for arch in dict.fromkeys(archs):
        name = f"{bundle.name}-{bundle.space.flops(arch)}"
        if bundle.precision != "fp32":
            name += f"-{bundle.precision}"
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").write_bytes(export_onnx(bundle, arch))
        (folder / name / "labels.txt").write_text("\n".join(bundle.labels) + "\n", encoding="utf-8")
        config = _TRITON_CONFIG.format(
            name=json.dumps(name, ensure_ascii=False),
            batch=_TRITON_BATCH,
            side=bundle.space.resolution(arch),
            classes=len(bundle.labels),
            INPUT=INPUT,
            OUTPUT=OUTPUT,
        )
        (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
        names.append(name)
    return names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_parser("shiftnas_serve.export", _DESCRIPTION)
    made.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--flops",
        nargs="+",
        metavar="BUDGET",
        help="take what the bundle answers to this budget: 4M, 1.3G, 4e6; several for triton",
    )
    which.add_argument("--arch", metavar="FILE|JSON", help="take this arch")
    made.add_argument("--format", choices=(*FORMATS, TRITON), default="onnx")
    made.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="int8: of onnx and triton, what the bundle holds in 8 bits (default: fp32)",
    )
    made.add_argument(
        "--out", type=Path, required=True, help="the file to write; for triton a new folder"
    )
    return made


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    options = parser().parse_args(arguments)
    if options.precision != "fp32" and options.format not in ("onnx", TRITON):
        raise ValueError(
            f"--format {options.format} is written in fp32; leave --precision out, or give "
            "--format onnx"
        )
    named = _SUFFIXES.get(options.out.suffix, options.format)
    if options.format in FORMATS and named != options.format:
        raise ValueError(
            f"--out {options.out} is named like --format {named}, and --format is "
            f"{options.format}: change one of them"
        )
    bundle = load_bundle(options.bundle).at(options.precision)
    if options.arch is not None:
        archs = [read_arch(bundle.space, options.arch)]
    else:
        archs = [bundle.answer(parse_flops(budget)) for budget in options.flops]
    try:
        if options.format == TRITON:
            names = write_triton(bundle, archs, options.out)
            told = {"out": str(options.out), "format": TRITON, "models": names}
            print(json.dumps(told) if options.json else f"{options.out}: {', '.join(names)}")
            return 0
        if len(archs) > 1:
            raise ValueError(
                f"--flops {' '.join(options.flops)}: --format {options.format} writes one "
                "subnet; give one budget, or --format triton"
            )
        (arch,) = archs
        data = FORMATS[options.format](bundle, arch)
        options.out.write_bytes(data)
    except OSError as error:
        raise ValueError(f"cannot write {options.out}: {error.strerror}") from None
    described = bundle.describe(arch)
    if options.json:
        files = {"out": str(options.out), "format": options.format, "size_bytes": len(data)}
        print(json.dumps({**described, **files}))
    else:
        print(
            f"{options.out}: subnet {described['id']} of {bundle.name} in {bundle.precision}, "
            f"{described['flops']:,} FLOPs, {described['params']:,} parameters, {len(data):,} bytes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
