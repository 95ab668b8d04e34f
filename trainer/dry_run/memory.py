"""Memory of a training process: what its tensors take, what is free, what was the most."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Bytes of the recipe's batch in a single process.

    ``average``: of the weights. ``copies``: of weights, masked or in another precision, kept for a
    backward pass.
    """

    parameters: int
    gradients: int
    optimizer: int
    before: int
    average: int
    copies: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))

    def by_name(self) -> dict[str, int]:
        """Each with its unit in its name."""
        return {f"{name}_bytes": value for name, value in dataclasses.asdict(self).items()}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an optimizer keeps for its parameters."""
    states = optimizer.state.values()
    return bytes_of(v for state in states for v in state.values() if isinstance(v, Tensor))


def free_bytes(device: str) -> int:
    """Memory that could be used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def peak_bytes(device: str) -> int:
    """The most memory that this process had: of the GPU, or resident on the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
