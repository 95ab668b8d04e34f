"""Write one subnet of a bundle to a file: ``python -m shiftnas_serve.export --help``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from models import PRODUCT
from models.bundle.folder import Bundle, load_bundle
from models.extras import require
from models.onnx import OPSET
from models.space.arch import Arch
from models.space.describe import read_arch
from models.space.quantity import parse_flops

_DESCRIPTION = f"""\
Write one subnet of a bundle to a file that needs neither the bundle nor this
project to run.

  python -m shiftnas_serve.export BUNDLE --flops 4M --format onnx --out 4m.onnx

onnx      self-contained ONNX model, opset {OPSET}:
          images float32 (batch, 3, side, side) -> logits
tensorrt  serialized engine for this machine's GPU (needs TensorRT and a GPU)
torch     torch.export program, .pt2 (needs torch)

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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m shiftnas_serve.export",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=PRODUCT)
    made.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--flops", help="the generator's subnet for this budget: 4M, 1.3G, 4e6")
    which.add_argument("--arch", metavar="FILE|JSON", help="this arch")
    made.add_argument("--format", choices=FORMATS, default="onnx")
    made.add_argument("--out", type=Path, required=True, help="the file to write")
    made.add_argument("--json", action="store_true", help="print what was written as JSON")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    options = parser().parse_args(arguments)
    try:
        bundle = load_bundle(options.bundle)
        if options.arch is not None:
            arch = read_arch(bundle.space, options.arch)
        else:
            arch = bundle.answer(parse_flops(options.flops))
        data = FORMATS[options.format](bundle, arch)
        try:
            options.out.write_bytes(data)
        except OSError as error:
            raise ValueError(f"cannot write {options.out}: {error.strerror}") from None
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    described = bundle.describe(arch)
    if options.json:
        files = {"out": str(options.out), "format": options.format, "size_bytes": len(data)}
        print(json.dumps({**described, **files}))
    else:
        print(
            f"{options.out}: subnet {described['id']} of {bundle.name}, {described['flops']:,} "
            f"FLOPs, {described['params']:,} parameters, {len(data):,} bytes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
