"""AbstractRuntime and AbstractSession: what the engine asks of whatever executes subnets."""

from __future__ import annotations

import abc

import numpy as np

from models.bundle.folder import Bundle
from models.space.arch import Arch


class AbstractSession(abc.ABC):
    """One subnet, ready to run."""

    size_bytes: int
    """An estimate of the memory that it alone holds; eviction counts it."""
    made: str = "built"
    """How it came to be, for answers that had to wait for it: ``built``, or ``universal`` where it
    shares what others have."""

    @abc.abstractmethod
    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 (batch, 3, side, side), any batch from 1 -> logits, float32 (batch, classes).

        Called from several threads at once.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give the memory back. Closing twice is not an error."""


class AbstractRuntime(abc.ABC):
    """Builds sessions on one device. ``describe`` says what really runs, for /readyz.

    Called with one of its entry's devices and a number of threads, with ``engine_cache`` if the
    entry says that it keeps engines and that setting is there, and with ``precision="bf16"`` if it
    is to compute in that.
    """

    build_limit_s: float = 5.0
    """What builds for longer, and longer than ``stall_s``, stands still."""

    @abc.abstractmethod
    def build(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        """A session for a subnet of a bundle."""

    @property
    def shared_bytes(self) -> int:
        """An estimate of the memory that its sessions hold together, each part counted once."""
        return 0

    @abc.abstractmethod
    def describe(self) -> dict[str, str]:
        """Name, device and version as they are, not as they were asked for."""
