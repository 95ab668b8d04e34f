"""Reading checkpoints from outside: tensors only, never pickled objects. Uses torch."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

ENTRIES = ("state_dict", "model", "net", "state_dict_ema", "model_ema", "ema")
"""Under which training scripts put a network's tensors, beside optimizers and counters; the first
that a file has is taken unless another is asked for."""

_WRAPPER = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""What data-parallel training and torch.compile put before every name, in any order."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network's tensors by name, floating point as float32.

    entry: under which the file has them; empty if they are at its top. others: entries that it has
    as well, and that were not taken.
    """

    path: Path
    tensors: Mapping[str, np.ndarray]
    entry: str
    others: tuple[str, ...]

    @property
    def taken(self) -> str:
        """Which entry was taken, for a person."""
        beside = f"; it also has {', '.join(self.others)}" if self.others else ""
        return (f"entry {self.entry!r}" if self.entry else "the whole file") + beside


def read_checkpoint(path: Path, entry: str | None = None) -> Checkpoint:
    """Read a ``.safetensors`` file (whatever its name) or one written by ``torch.save``.

    ``entry``: which of ``ENTRIES`` to take. Beside it there may be numbers, NumPy's too, and the
    arguments of the training script. Raises ValueError if the file is missing, cut off, holds
    objects other than tensors, holds no tensors, or lacks the entry.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}; give a .safetensors file or one of torch.save")
    document = _load(path)
    there = [name for name in ENTRIES if isinstance(document.get(name), Mapping)]
    if entry is not None and entry not in there:
        raise ValueError(f"{path} has no entry {entry!r}; it has: {', '.join(there) or 'none'}")
    taken = entry or next(iter(there), "")
    named_values = document[taken] if taken else document
    assert isinstance(named_values, Mapping)
    tensors = {str(k): value for k, value in named_values.items() if isinstance(value, Tensor)}
    plain = (Tensor, bool, int, float, str, np.generic)
    strange = [str(n) for n, value in named_values.items() if not isinstance(value, plain)]
    if not tensors or strange:
        raise ValueError(
            f"{path} is not a network's checkpoint: it should hold tensors by name, at the top or "
            f"under {' / '.join(ENTRIES)}; it has {named(strange or named_values) or 'nothing'}"
        )
    bare = {_WRAPPER.sub("", name): value for name, value in tensors.items()}
    if len(bare) < len(tensors):
        raise ValueError(f"{path} has names that differ only in module. or _orig_mod. before them")
    arrays = {name: _array(value) for name, value in bare.items()}
    return Checkpoint(path, arrays, taken, tuple(name for name in there if name != taken))


def named(names: Iterable[str], at_most: int = 3) -> str:
    """Some names for a message: the first few, and how many more."""
    listed = sorted(names)
    more = f" and {len(listed) - at_most} more" if len(listed) > at_most else ""
    return ", ".join(listed[:at_most]) + more


def take(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, np.ndarray]:
    """Our name -> (their name, shape) looked up, as float32.

    Raises ValueError naming the tensors that are missing, or the first whose shape is another or
    that holds numbers that are not finite.
    """
    missing = [theirs for theirs, _ in wanted.values() if theirs not in tensors]
    if missing:
        raise ValueError(f"the checkpoint lacks {named(missing)}; it is of another network")
    taken = {}
    for ours, (theirs, shape) in wanted.items():
        array = tensors[theirs]
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(
                f"the checkpoint's {theirs} is {array.dtype} {array.shape}, not float32 {shape}; "
                "it is of another network"
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"the checkpoint's {theirs} holds numbers that are not finite; its training failed"
            )
        taken[ours] = array
    return taken


def _load(path: Path) -> Mapping[str, object]:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or (start[8:] == b"{" and not start.startswith(b"PK")):
        try:
            return {str(name): tensor for name, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_values()):
            warnings.simplefilter("ignore")  # of other pickle protocols
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - bytes that are not a pickle raise whatever they hit
        strange = re.search(r"GLOBAL (\S+)", str(error))
        if strange is not None:
            raise ValueError(
                f"{path} cannot be read as tensors only: to make its {strange[1]}, code from the "
                "file would have to run; save the network's state_dict alone"
            ) from None
        raise ValueError(
            f"{path} cannot be read: it is cut off, or not a file of torch.save; "
            "get it anew, or save the network's state_dict with torch.save or as safetensors"
        ) from None
    if not isinstance(document, Mapping):
        raise ValueError(f"{path} holds a {type(document).__name__}, not tensors by name")
    return {str(name): value for name, value in document.items()}


def _values() -> list[Any]:
    """What may stand beside tensors: a script's arguments, and NumPy's numbers."""
    made, _ = np.float64(0).__reduce__()
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # NumPy 1, NumPy 2
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [argparse.Namespace, np.dtype, *kinds, *((made, name) for name in names)]


def _array(tensor: Tensor) -> np.ndarray:
    plain = tensor.detach()
    return (plain.float() if plain.is_floating_point() else plain).numpy()
