"""Checkpoints: all state of a run in one file, written so that a whole one always survives."""

from __future__ import annotations

import os
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from models.bundle.disk import reason, refused

CHECKPOINT_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"
PARTIAL_NAME = "checkpoint.partial"

State = dict[str, Any]
"""By name: tensors, plain values, and the state of optimizers as torch gives it."""


def save_checkpoint(folder: Path, state: State) -> Path:
    """Write ``folder/checkpoint.pt``; the one before stays beside it.

    It is written under another name, flushed to the disk and renamed, so that a process that dies
    at any moment leaves a whole checkpoint. Raises ValueError when it cannot be written.
    """
    path, partial = folder / CHECKPOINT_NAME, folder / PARTIAL_NAME
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(folder / PREVIOUS_NAME)
        partial.replace(path)
        _flush_names(folder)
    except (OSError, RuntimeError) as error:
        raise ValueError(refused(path, error)) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to resume."""
    return any((folder / name).is_file() for name in (CHECKPOINT_NAME, PREVIOUS_NAME))


def kept_state(folder: Path) -> State | None:
    """What a resumed run would go on from, as the disk has it; None if there is none.

    Tensors stay on the disk until somebody reads them, so that a glance costs little.
    """
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        with suppress(Exception):  # whatever a broken file makes torch raise
            state = torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
            if "step" in state:
                return state
    return None


def kept_step(folder: Path) -> int | None:
    """Its step."""
    state = kept_state(folder)
    return None if state is None else int(state["step"])


def load_checkpoint(folder: Path) -> State:
    """The newest whole checkpoint: tensors and plain values only, no code is run.

    One that is broken is passed over, which is said on stderr. Raises ValueError when none is
    whole.
    """
    broken: list[str] = []
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        path = folder / name
        if not path.is_file():
            continue
        try:
            state = _read(path)
        except Exception as error:  # noqa: BLE001 - whatever a broken file makes torch raise
            broken.append(f"{path} cannot be read ({reason(error)})")
            continue
        if broken:
            print(f"{broken[0]}; going on from {name}", file=sys.stderr)
        return state
    if broken:
        raise ValueError("; ".join(broken) + "; start a new run with --out")
    raise ValueError(f"{folder} has no {CHECKPOINT_NAME}; there is nothing to resume")


def _read(path: Path) -> State:
    # torch does not compare the checksums that its archive holds
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError("it holds no state")
    return state


def _flush_names(folder: Path) -> None:
    """Make renames in a folder survive a loss of power, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
