"""Checkpoints: all state of a run in one file, written so that a whole one always survives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_NAME = "checkpoint.pt"

State = dict[str, Any]
"""By name: tensors, plain values, and the state of optimizers as torch gives it."""


def save_checkpoint(folder: Path, state: State) -> Path:
    """Write ``folder/checkpoint.pt``: beside the old one, flushed to disk, then renamed over it."""
    path = folder / CHECKPOINT_NAME
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to resume."""
    return (folder / CHECKPOINT_NAME).is_file()


def load_checkpoint(folder: Path) -> State:
    """The newest whole checkpoint: tensors and plain values only, no code is run.

    Raises ValueError when there is none or it cannot be read.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {CHECKPOINT_NAME}; there is nothing to resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    assert isinstance(state, dict)
    return state
