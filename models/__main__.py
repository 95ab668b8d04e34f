"""Ask about search spaces and bundles: ``python -m models --help``. Answers are JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from models.arch import Arch
from models.bundle import load_bundle
from models.converters import CONVERTERS
from models.quantity import parse_flops
from models.space import SearchSpace
from models.spaces import SPACES, get_space

_DESCRIPTION = """\
Ask about search spaces and bundles; every answer is JSON. FLOPs are multiply-adds.

  python -m models describe cifar-cnn
  python -m models describe cifar-cnn --arch '{"resolution": 32, ...}'   (or a file with it)
  python -m models generate models/zoo/cifar10-cnn --flops 4M
  python -m models convert autoformer supernet-tiny.pth --out bundles/vit-tiny
  python -m models convert attentivenas attentive_nas.pth.tar --out bundles/an --data photos/"""


def read_arch(space: SearchSpace, text: str) -> Arch:
    """An arch from JSON, or from a file that holds JSON. Raises ValueError."""
    source = text
    if not text.lstrip().startswith("{"):
        try:
            source = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot read {text}: {error.strerror}; give a file or JSON") from None
        except UnicodeDecodeError:
            raise ValueError(f"{text} is no text; give a file with JSON, or JSON") from None
    try:
        document = json.loads(source)
    except ValueError as error:
        raise ValueError(f"the arch is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError("an arch is a JSON object, like the one describe prints")
    return space.arch_from_json(document)


def describe_arch(space: SearchSpace, arch: Arch) -> dict[str, object]:
    """One arch: id, multiply-adds, parameters, choices."""
    return {
        "id": space.arch_id(arch),
        "flops": space.flops(arch),
        "params": space.params(arch),
        "arch": space.arch_to_json(arch),
    }


def describe(options: argparse.Namespace) -> dict[str, object]:
    """A space, or one arch of it."""
    name = options.space
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
    archs = 1
    for decision in space.decisions:
        archs *= len(decision.choices)
    return {
        "space": space.name,
        "flops": {"min": space.min_flops, "max": space.max_flops},
        "params": {"min": space.params(space.smallest), "max": space.params(space.largest)},
        "choices": archs,
        "decisions": {d.name: list(d.choices) for d in space.decisions},
        "smallest": describe_arch(space, space.smallest),
        "largest": describe_arch(space, space.largest),
    }


def generate(options: argparse.Namespace) -> dict[str, object]:
    """What a bundle answers to a budget."""
    budget = parse_flops(options.flops)
    bundle = load_bundle(options.bundle)
    arch = bundle.answer(budget)
    model = {"name": bundle.name, "version": bundle.version}
    return {"budget_flops": budget, **describe_arch(bundle.space, arch), "model": model}


def convert(options: argparse.Namespace) -> dict[str, object]:
    """A bundle from a public checkpoint."""
    # loaded by name, since it is the only command here that needs torch
    deployment = importlib.import_module("models.converters.deployment")
    write: Callable[..., dict[str, object]] = deployment.convert_to_bundle
    where = options.converter, options.checkpoint, options.out
    return write(*where, data=options.data, minutes=options.minutes)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m models",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("describe", help="a space: FLOPs, parameters, decisions")
    one.add_argument("space", metavar="SPACE", help=f"one of: {', '.join(sorted(SPACES))}")
    one.add_argument("--arch", metavar="FILE|JSON", help="describe this arch of the space")
    one.add_argument(
        "--relative-position", action="store_true", help="of a vit-* space: the variant with it"
    )
    one.set_defaults(run=describe)
    one = commands.add_parser("generate", help="what a bundle answers to a budget")
    one.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    one.add_argument("--flops", required=True, help="the budget: 4000000, 4e6, 4M, 1.3G")
    one.set_defaults(run=generate)
    one = commands.add_parser("convert", help="a public supernet's checkpoint to a bundle")
    one.add_argument(
        "converter", metavar="CONVERTER", help=f"one of: {', '.join(sorted(CONVERTERS))}"
    )
    one.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="tensors only")
    one.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="a new folder")
    one.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="images (JPEG, PNG, WebP; any depth, no labels): BatchNorm statistics are measured on "
        "them",
    )
    one.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="let the generator learn from --data, too, for at most so long; not shown to help, so "
        "0 by default (docs/experiments.md)",
    )
    one.set_defaults(run=convert)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for a mistake of the user's, 130 when stopped by Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        print(json.dumps(options.run(options), indent=2), flush=True)
    except BrokenPipeError:  # as in `... | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
