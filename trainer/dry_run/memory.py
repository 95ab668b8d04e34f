"""Memory of a training process: what its tensors take, what is free, what was the most."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Bytes of the recipe's batch in a single process.

    ``average``: of the weights. ``copies``: of weights, masked or in another precision, kept for a
    backward pass. Of several processes each needs its share of the activations, and all of the
    rest.
    """

    parameters: int
    gradients: int
    optimizer: int
    before: int
    average: int
    copies: int
    activations: int

    @property
    def fixed(self) -> int:
        """All but the activations."""
        weights = self.parameters + self.gradients + self.optimizer
        return weights + self.before + self.average + self.copies


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an optimizer keeps for its parameters."""
    states = optimizer.state.values()
    return bytes_of(v for state in states for v in state.values() if isinstance(v, Tensor))


def free_bytes(device: str) -> int:
    """Memory that could be used; half of the machine's where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def peak_bytes(device: str) -> int:
    """The most memory that this process had: of the GPU, or resident on the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
