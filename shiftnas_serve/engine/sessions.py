"""Sessions: the resident sessions of a bundle's subnets, bounded in bytes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from models.bundle.folder import Bundle
from models.space.arch import Arch
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession


@dataclass
class _Slot:
    """One arch: its session once built. The lock makes concurrent askers wait for one build."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    session: AbstractSession | None = None


@dataclass(frozen=True)
class Inference:
    """Logits, float32 (batch, classes), and what they cost."""

    logits: np.ndarray
    infer_ms: float
    build_ms: float
    source: str


class Sessions:
    """Arch -> session. Least recently used sessions go when ``limit_bytes`` is exceeded.

    ``pinned`` archs stay. Thread-safe. A session that is running when it is evicted finishes and is
    freed then.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: AbstractRuntime,
        limit_bytes: int,
        pinned: Collection[Arch] = (),
    ) -> None:
        self._bundle, self._runtime, self._limit = bundle, runtime, limit_bytes
        self._pinned = frozenset(pinned)
        self._lock = threading.Lock()
        self._slots: OrderedDict[Arch, _Slot] = OrderedDict()
        self.builds = self.evictions = 0

    def run(
        self, arch: Arch, images: np.ndarray, *, built: Callable[[], None] | None = None
    ) -> Inference:
        """Run float32 (batch, 3, side, side) through a subnet, built first if it is not there.

        ``built`` is called between a build and the run.
        """
        session, build_ms = self.session(arch)
        if build_ms and built is not None:
            built()
        start = time.perf_counter()
        logits = session.run(images)
        source = session.made if build_ms else "resident"
        return Inference(logits, 1000 * (time.perf_counter() - start), build_ms, source)

    def session(self, arch: Arch) -> tuple[AbstractSession, float]:
        """The session of an arch, and the milliseconds spent on building it (0 if resident)."""
        with self._lock:
            slot = self._slots.setdefault(arch, _Slot())
            self._slots.move_to_end(arch)
        start = time.perf_counter()
        with slot.lock:
            if slot.session is not None:
                return slot.session, 0.0
            try:
                session = slot.session = self._runtime.build(self._bundle, arch)
            except BaseException:
                with self._lock:
                    self._slots.pop(arch, None)
                raise
        with self._lock:
            self.builds += 1
            self._evict(keep=arch)
        return session, 1000 * (time.perf_counter() - start)

    def close(self) -> None:
        """Let all sessions go, the pinned ones too; those that run finish."""
        with self._lock:
            self._slots.clear()

    @property
    def build_limit_s(self) -> float:
        """How long a build may take."""
        return self._runtime.build_limit_s

    def is_resident(self, arch: Arch) -> bool:
        """Whether a session of this arch is there now."""
        with self._lock:
            slot = self._slots.get(arch)
            return slot is not None and slot.session is not None

    def resident(self) -> list[Arch]:
        """Archs with a session, least recently used first."""
        with self._lock:
            return [arch for arch, slot in self._slots.items() if slot.session is not None]

    @property
    def size_bytes(self) -> int:
        """An estimate of what the sessions hold, each alone and all together."""
        with self._lock:
            return self._size()

    def _size(self) -> int:
        own = sum(slot.session.size_bytes for slot in self._slots.values() if slot.session)
        return own + self._runtime.shared_bytes

    def _evict(self, keep: Arch) -> None:
        for arch in list(self._slots):
            if self._size() <= self._limit:
                return
            slot = self._slots[arch]
            if arch != keep and arch not in self._pinned and slot.session is not None:
                del self._slots[arch]
                self.evictions += 1
