"""What the commands on a bundle or a run have in common: options, and mistakes in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from models import PRODUCT


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Of ``python -m MODULE``, with its text as it is written, --version and --json."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=PRODUCT)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    return parser


def bundle_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The same, of a bundle and labelled images."""
    parser = command_parser(module, description)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument(
        "--data",
        required=True,
        help="labelled images: parquet or tar file or folder, image folder, or a data set's name",
    )
    return parser


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Options of what runs a bundle's subnets on the images."""
    parser.add_argument(
        "--rows", default=":", help="take some of the images, like 0:1000 or 0::2 (default: all)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads that run a subnet (default: 1; 0: all cores)",
    )


def check_threads(threads: int) -> None:
    """Raises ValueError for a --threads that no runtime takes."""
    if threads < 0:
        raise ValueError(f"--threads is {threads}: give 1 or more, or 0 for as many as it takes")


def say_left_out(broken: Iterable[str]) -> None:
    """Name images that could not be decoded, each with its reason, once."""
    for image in dict.fromkeys(broken):
        print(f"left out {image}", file=sys.stderr)


def status_of(work: Callable[[], None], *, stopped: str = "stopped") -> int:
    """Do it; the exit status: 0, 2 for a mistake of the user's, 130 for Ctrl-C (``stopped``)."""
    try:
        work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0
