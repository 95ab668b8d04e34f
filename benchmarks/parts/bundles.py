"""Which bundle a benchmark of the server serves: --bundle, or an untrained one of --space."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CIFAR10_CNN = Path(__file__).resolve().parents[2] / "models" / "zoo" / "cifar10-cnn"
"""What the recorded figures were measured with: small subnets show what a server adds to them."""


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """--bundle and --space."""
    parser.add_argument(
        "--bundle", type=Path, help="a bundle's folder (default: models/zoo/cifar10-cnn)"
    )
    parser.add_argument(
        "--space",
        metavar="NAME",
        help="an untrained bundle of this search space (takes torch and some minutes); kept in "
        "--bundle if that is given and is not there yet",
    )


@contextlib.contextmanager
def chosen_bundle(options: argparse.Namespace) -> Iterator[Path]:
    """The folder. Raises ValueError for an unknown space."""
    if options.space is None:
        yield options.bundle or CIFAR10_CNN
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.bundle or Path(scratch) / options.space
        if not folder.exists():
            from benchmarks.parts.untrained import write_untrained

            print(f"writing an untrained bundle of {options.space}", file=sys.stderr)
            write_untrained(options.space, folder, options.seed)
        yield folder
