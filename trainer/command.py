"""Options that the commands on a bundle and labelled images have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from models.command import command_parser


def bundle_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """``command_parser``, of a bundle and labelled images."""
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
