"""Reading checkpoints from outside: tensors only, never pickled objects. Uses torch."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("state_dict", "model", "net")
"""Entries under which training scripts put a network's tensors, beside optimizers and counters."""


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """A network's tensors by name, from a ``.safetensors`` file or one written by ``torch.save``.

    Floating point comes back as float32. Takes the entry ``state_dict``, ``model`` or ``net`` if
    there is one, beside which there may be the arguments of the training script, and removes a
    ``module.`` before every name (data-parallel training). Raises ValueError if the file is
    missing, cut off, holds objects other than tensors, or holds no tensors.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}; give a .safetensors file or one of torch.save")
    document = _load(path)
    for wrapper in WRAPPERS:
        inner = document.get(wrapper)
        if isinstance(inner, Mapping):
            document = inner
            break
    tensors = {str(k): value for k, value in document.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(document):
        strange = [str(name) for name, value in document.items() if not isinstance(value, Tensor)]
        raise ValueError(
            f"{path} is no network's checkpoint: it should hold tensors by name, at the top or "
            f"under {' / '.join(WRAPPERS)}; it has {named(strange) or 'nothing'}"
        )
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: _array(value) for name, value in tensors.items()}


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
    if path.suffix == ".safetensors":
        try:
            return {str(name): tensor for name, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of other pickle protocols
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - bytes that are no pickle raise whatever they hit
        strange = re.search(r"GLOBAL (\S+)", str(error))
        if strange is not None:
            raise ValueError(
                f"{path} cannot be read as tensors only: to make its {strange[1]}, code from the "
                "file would have to run; save the network's state_dict alone"
            ) from None
        raise ValueError(
            f"{path} cannot be read: it is cut off or no file of torch.save; "
            "get it anew, or save the network's state_dict with torch.save or as safetensors"
        ) from None
    if not isinstance(document, Mapping):
        raise ValueError(f"{path} holds a {type(document).__name__}, not tensors by name")
    return {str(name): value for name, value in document.items()}


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
