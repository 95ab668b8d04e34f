"""The files of a bundle: arrays, hashes, one folder in the place of another. No torch."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from models.bundle.costs import ENDING
from models.bundle.int8 import INT8
from models.bundle.manifest import FileEntry
from models.bundle.value import STATISTICS
from models.space.search_space import SearchSpace

MANIFEST, CARD = "bundle.json", "card.md"
SUPERNET, GENERATOR = "supernet.safetensors", "generator.safetensors"
TEMPLATE = "template.onnx"


def contiguous(
    arrays: Mapping[str, np.ndarray], dtype: type[np.floating] = np.float32
) -> dict[str, np.ndarray]:
    """As safetensors stores them, row by row."""
    return {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}


def halved(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The nearest values that half precision holds: stored in it, they come back exactly."""
    return {k: np.asarray(v, np.float16).astype(np.float32) for k, v in arrays.items()}


def describe(file: Path) -> FileEntry:
    """What the manifest says of a file."""
    data = file.read_bytes()
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def swap(partial: Path, path: Path) -> None:
    """Put ``partial`` in the place of ``path``; a folder cannot be renamed over a full one."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_files(
    path: Path, files: Mapping[str, FileEntry], space: SearchSpace, *, int8: bool
) -> None:
    """Raise ValueError naming a file that is missing or not the one that the manifest lists."""
    more = [STATISTICS] if space.norms else []
    more += [name for name in files if name.endswith(ENDING)]
    more += [INT8] if int8 else []
    for name in (SUPERNET, GENERATOR, TEMPLATE, *more):
        if name not in files:
            raise ValueError(f"files does not list {name}")
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        expected, found = files[name], describe(path / name)
        if expected.size_bytes != found.size_bytes:
            raise ValueError(
                f"{name} has {found.size_bytes:,} bytes, not {expected.size_bytes:,}; "
                "it is cut off or another file"
            )
        if expected.sha256 != found.sha256:
            raise ValueError(f"{name} has another SHA-256 than {MANIFEST} says; it was changed")


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, half precision as float32.

    Raises ValueError naming a file that is not one, or an array that holds what is not a number.
    """
    try:
        arrays = {name: _widened(array) for name, array in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(f"{file.name} is not a safetensors file: {error}") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{file.name}: {name} holds what is not a number (NaN or infinity)")
    return arrays


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def check_shapes(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raise ValueError unless there are exactly these, float32, of these shapes."""
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{where} lacks {name}")
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise ValueError(
                f"{where}: {name} is {arrays[name].dtype} {arrays[name].shape}, not float32 {shape}"
            )
    for name in arrays:
        if name not in shapes:
            raise ValueError(f"{where} has {name}, which the space does not know")
