"""Ask about search spaces and bundles: ``python -m models --help``. Answers are JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from models.bundle.folder import Bundle, load_bundle
from models.bundle.manifest import confidence_entry, int8_entry
from models.bundle.value import Precision
from models.command import command_parser, status_of
from models.converters import CONVERTERS
from models.costs.table import read_table
from models.extras import require
from models.space.describe import describe_arch, describe_space, read_arch
from models.space.quantity import parse_flops, positive
from models.spaces import SPACES, get_space

_DESCRIPTION = """\
Ask about search spaces and bundles; every answer is JSON. FLOPs are multiply-adds.

  python -m models describe cifar-cnn
  python -m models describe cifar-cnn --arch '{"resolution": 32, ...}'   (or a file with it)
  python -m models describe models/zoo/cifar10-cnn
  python -m models generate models/zoo/cifar10-cnn --flops 4M
  python -m models measure models/zoo/cifar10-cnn --threads 1 --out table.json
  python -m models extract models/zoo/cifar10-cnn --flops 4M --out 4m.pt2
  python -m models extract models/zoo/cifar10-cnn --flops 4M --features --out maps.onnx
  python -m models quantize models/zoo/cifar10-cnn --data photos/ --out bundles/int8
  python -m models retarget models/zoo/cifar10-cnn --table table.json --out bundles/ms
  python -m models convert autoformer supernet-tiny.pth --out bundles/vit-tiny
  python -m models convert attentivenas attentive_nas.pth.tar --out bundles/an --data photos/"""

_MEASURE = """\
Time subnets of a bundle's space on this machine, and work out what their layers take.

  python -m models measure models/zoo/cifar10-cnn --threads 1 --out table.json

Measure as you serve: the same device, threads and batch, with nothing else running. Subnets are
called in turn, so that a slow second hits all of them alike. 30 more are timed to tell how far off
the table is ("prediction": errors relative to what was measured; below 0.05 is good). Ctrl-C keeps
what has been timed beside the table; the same command goes on from there."""

_QUANTIZE = """\
Let the bundle's answers run in 8-bit integers too: faster on a CPU with VNNI, nearly as right.

  python -m models quantize models/zoo/imagenet-mobile --data photos/ --out bundles/int8
  python -m shiftnas_serve --bundle bundles/int8 --precision int8

Photos of the kind that will be sent, without labels. Half of them give the ranges of activations;
the others tell how often int8 answers what full precision does. Weights are such that
every processor computes the same. Labelled images tell accuracies too: `trainer.quantize`."""

_RETARGET = """\
Add answers by another cost than FLOPs: those that the bundle stores, each by what it takes, in
seconds. With images (--data), or where it stores none, a generator learns the cost in a minute.

  python -m models measure models/zoo/cifar10-cnn --threads 1 --out table.json
  python -m models quantize models/zoo/cifar10-cnn --data photos/ --out bundles/int8
  python -m models retarget models/zoo/cifar10-cnn --table table.json --out bundles/ms
  python -m models generate bundles/ms --ms 0.25
  python -m shiftnas_serve --bundle bundles/ms

FLOPs budgets are answered as before. An answer to milliseconds never takes more by the table."""


def describe(options: argparse.Namespace) -> dict[str, object]:
    """Tell what a space or a bundle is, or one of its archs."""
    name = options.space
    is_path = os.sep in name or os.path.isdir(name)  # noqa: PTH112 (Path's raises for some names)
    if name not in SPACES and is_path:
        if options.relative_position:
            raise ValueError("--relative-position is for a space; a bundle has its own")
        bundle = load_bundle(Path(name))
        if options.arch is None:
            return describe_bundle(bundle)
        return bundle.describe(read_arch(bundle.space, options.arch))
    if options.relative_position:
        get_space(name)  # names what is near, if there is none
        if f"{name}-rpe" not in SPACES:
            having = ", ".join(n.removesuffix("-rpe") for n in sorted(SPACES) if n.endswith("-rpe"))
            raise ValueError(
                f"--relative-position: {name} has no variant with it; these have: {having}"
            )
        name += "-rpe"
    space = get_space(name)
    if options.arch is not None:
        return {"space": space.name, **describe_arch(space, read_arch(space, options.arch))}
    return describe_space(space)


def describe_bundle(bundle: Bundle) -> dict[str, object]:
    """What a bundle answers, and how images become what its subnets read.

    Ranges and ends are of its answers; the number of archs and the decisions are its space's.
    """
    known, space = bundle.confidence, bundle.space
    smallest = bundle.answer(bundle.min_flops)
    return {
        "model": {"name": bundle.name, "version": bundle.version},
        "card": bundle.card or None,
        "labels": list(bundle.labels),
        "preprocess": bundle.preprocess.to_json(),
        "confidence": known and confidence_entry(known).model_dump(mode="json"),
        "int8": known_int8(bundle),
        "frontier": [
            {
                "budget_flops": row.budget_flops,
                "id": space.arch_id(row.arch),
                "flops": row.flops,
                "params": row.params,
                "held_out_accuracy": row.held_out_accuracy,
                "test_accuracy": row.test_accuracy,
            }
            for row in bundle.frontier
        ],
        **describe_space(space),
        "flops": {"min": bundle.min_flops, "max": bundle.max_flops},
        "params": {"min": space.params(smallest), "max": space.params(space.largest)},
        "smallest": describe_arch(space, smallest),
        "costs": {
            name: {
                "min": one.cost.value(one.min),
                "max": one.cost.value(one.cost.max),
                "unit": one.cost.unit,
            }
            for name, one in bundle.costs.items()
        },
    }


def known_int8(bundle: Bundle) -> dict[str, object] | None:
    """How good the answers are in 8-bit integers, if the bundle holds those."""
    if bundle.int8 is None:
        return None
    return int8_entry(bundle.space, bundle.int8, [row.arch for row in bundle.frontier]).model_dump(
        mode="json"
    )


def generate(options: argparse.Namespace) -> dict[str, object]:
    """What a bundle answers to a budget."""
    bundle = load_bundle(options.bundle)
    model = {"name": bundle.name, "version": bundle.version}
    if options.flops is not None:
        budget = parse_flops(options.flops)
        arch = bundle.answer(budget)
        return {"budget_flops": budget, **describe_arch(bundle.space, arch), "model": model}
    if "latency_ms" not in bundle.costs:
        raise ValueError(f"{bundle.name} knows FLOPs alone; `models retarget` adds milliseconds")
    ms = bundle.costs["latency_ms"]
    arch = ms.answer(options.ms)
    return {
        "budget_ms": options.ms,
        "latency_ms": ms.cost.value(ms.cost.of(arch)),
        **describe_arch(bundle.space, arch),
        "model": model,
    }


def extract(options: argparse.Namespace) -> dict[str, object]:
    """A subnet, or its features, as a file for Python users."""
    bundle = load_bundle(options.bundle).at(options.precision)
    if options.precision != "fp32" and (options.features or options.out.suffix == ".pt2"):
        raise ValueError(f"--precision {options.precision} is for logits as .onnx; leave it out")
    if options.arch is not None:
        arch = read_arch(bundle.space, options.arch)
    else:
        arch = bundle.answer(parse_flops(options.flops))
    kind = options.out.suffix
    if kind == ".onnx" and not options.features:
        data = bundle.build_onnx(arch).SerializeToString()
    elif kind in (".onnx", ".pt2"):
        require("train", "torch", "onnxscript", "onnx_ir")
        deployed = importlib.import_module("models.nets.deployed")
        if kind == ".onnx":
            data = deployed.features_onnx(bundle, arch)
        else:
            data = deployed.exported_program(bundle, arch, features=options.features)
    else:
        raise ValueError(f"--out {options.out}: name a file .onnx, or .pt2 for torch.export")
    options.out.write_bytes(data)
    return {**bundle.describe(arch), "out": str(options.out), "size_bytes": len(data)}


def convert(options: argparse.Namespace) -> dict[str, object]:
    """A bundle from a public checkpoint."""
    require("train", "torch", "threadpoolctl", "onnxscript", "onnx_ir", "rich")
    # loaded by name, as what needs torch is
    deployment = importlib.import_module("models.converters.deployment")
    write: Callable[..., dict[str, object]] = deployment.convert_to_bundle
    where = options.converter, options.checkpoint, options.out
    return write(*where, data=options.data, entry=options.entry)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """A latency table of this machine."""
    # loaded by name: describing a space needs no runtime
    measuring = importlib.import_module("models.measure.measure")
    setup = importlib.import_module("models.measure.timing").Setup(
        options.device, options.batch, options.threads
    )
    bundle = load_bundle(options.bundle)
    table = measuring.measure(bundle, setup, options.out, minutes=options.minutes)
    told = table.to_json()
    return {"table": str(options.out), **{k: told[k] for k in ("measured", "prediction")}}


def quantize(options: argparse.Namespace) -> dict[str, object]:
    """A bundle that also holds its answers in 8-bit integers."""
    # loaded by name: describing a space needs no runtime
    module = importlib.import_module("models.quantize")
    told: dict[str, object] = module.quantize_bundle(
        options.bundle, options.out, options.data, images=options.images
    )
    return told


def retarget(options: argparse.Namespace) -> dict[str, object]:
    """A bundle that also answers budgets of a table's cost."""
    require("train", "torch", "threadpoolctl", "rich")
    module = importlib.import_module("models.retarget")
    told: dict[str, object] = module.retarget(
        options.bundle, read_table(options.table), options.out, data=options.data
    )
    return told


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_parser("models", _DESCRIPTION, json=False)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser(
        "describe", help="tell a space's or a bundle's FLOPs, parameters, decisions, labels"
    )
    one.add_argument(
        "space",
        metavar="SPACE|BUNDLE",
        help=f"a bundle's folder, or one of: {', '.join(sorted(SPACES))}",
    )
    one.add_argument("--arch", metavar="FILE|JSON", help="describe this arch of it")
    one.add_argument(
        "--relative-position",
        action="store_true",
        help="describe the variant of a vit-* space with relative position",
    )
    one.set_defaults(run=describe)
    one = commands.add_parser("generate", help="tell what a bundle answers to a budget")
    one.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--flops", help="the budget: 4000000, 4e6, 4M, 1.3G")
    which.add_argument(
        "--ms", type=positive, help="a budget in milliseconds; needs a bundle that was retargeted"
    )
    one.set_defaults(run=generate)
    one = commands.add_parser(
        "measure",
        help="measure what subnets take on this machine, and write a table of milliseconds",
        description=_MEASURE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    one.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    one.add_argument(
        "--batch", type=int, default=1, help="images that a subnet gets at once (default: 1)"
    )
    one.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    one.add_argument(
        "--minutes",
        type=positive,
        default=5.0,
        help="measure for about so long; 2 to 10 is good (default: 5)",
    )
    one.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file of the table, JSON"
    )
    one.set_defaults(run=measure)
    one = commands.add_parser(
        "extract", help="write a subnet as a file: .onnx, or .pt2 of torch.export"
    )
    one.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--flops", help="take what the bundle answers to this budget: 4M, 1.3G")
    which.add_argument("--arch", metavar="FILE|JSON", help="take this arch")
    one.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file to write: *.onnx or *.pt2"
    )
    one.add_argument(
        "--features",
        action="store_true",
        help="give maps for dense tasks, one for each stride, in place of logits (needs torch)",
    )
    one.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="int8: .onnx in 8 bits"
    )
    one.set_defaults(run=extract)
    one = commands.add_parser(
        "quantize",
        help="a bundle whose answers also run in 8-bit integers",
        description=_QUANTIZE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    one.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="photos, without labels"
    )
    one.add_argument(
        "--images",
        type=int,
        default=256,
        help="calibrate, at most; as many others measure (default: 256)",
    )
    one.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="BUNDLE",
        help="a new folder; or the bundle's own, which then holds both",
    )
    one.set_defaults(run=quantize)
    one = commands.add_parser(
        "retarget",
        help="make a bundle that also answers budgets of a measured cost",
        description=_RETARGET,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    one.add_argument(
        "--table",
        type=Path,
        required=True,
        metavar="FILE",
        help="the table that `models measure` wrote",
    )
    one.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="a new folder")
    one.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="try the generator's answers on these images, which need no labels; without images a "
        "bundle keeps the answers that it stores, each with its milliseconds",
    )
    one.set_defaults(run=retarget)
    one = commands.add_parser("convert", help="make a bundle of a public supernet's checkpoint")
    one.add_argument(
        "converter", metavar="CONVERTER", help=f"one of: {', '.join(sorted(CONVERTERS))}"
    )
    one.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, or one of torch.save with tensors only",
    )
    one.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="a new folder")
    one.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="measure BatchNorm statistics on these images (JPEG, PNG, WebP; at any depth, without "
        "labels)",
    )
    one.add_argument(
        "--entry",
        help="take this entry of the checkpoint, e.g. model_ema; the output says which was taken",
    )
    one.set_defaults(run=convert)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for a mistake of the user's, 130 when stopped by Ctrl-C."""
    options = parser().parse_args(arguments)
    return status_of(lambda: print(json.dumps(options.run(options), indent=2)))


if __name__ == "__main__":
    sys.exit(main())
