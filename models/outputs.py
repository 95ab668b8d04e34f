"""What a command is to write: refused before its work, where it cannot be."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path

PLOTS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
"""Endings of plots' files."""


def refuse_unwritable(path: Path) -> None:
    """Raises ValueError where no file or folder can be made; those above it may be missing."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"{path} cannot be made: {above} is not a folder that can be written")


def plot_file(text: str) -> Path:
    """A plot's file on a command line, for ``type=`` of argparse, which names the option."""
    path = Path(text)
    if path.suffix.lower() not in PLOTS or path.is_dir():
        raise ArgumentTypeError(f"{text} is not a plot's file; name one that ends in {PLOTS[0]}")
    try:
        refuse_unwritable(path)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return path
