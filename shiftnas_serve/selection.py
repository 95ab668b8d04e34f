"""Selection: which subnet a worker runs for a job that a latency budget allows to shrink.

The choice is made when a job's turn comes, not when it arrives: a job that came before a burst
then makes room for the burst. While others wait, no session is built for it: one that is there
already, of a smaller subnet, answers instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

from models.bundle.folder import Bundle
from models.space.arch import Arch
from shiftnas_serve.frames import arch_indices, arch_key
from shiftnas_serve.latency import FIRST_BUILD_MS, MARGIN, LatencyTable

# How fast the estimate of what a build takes follows what is seen.
_STEP = 0.3


class Selection:
    """The subnets that latency budgets can get, by FLOPs, and how long each takes here."""

    def __init__(
        self,
        bundle: Bundle,
        archs: list[Arch],
        latency: LatencyTable,
        is_resident: Callable[[Arch], bool] = lambda arch: True,
    ) -> None:
        self._space, self._is_resident = bundle.space, is_resident
        self._build_ms = FIRST_BUILD_MS
        by_flops = {bundle.space.flops(arch): arch for arch in archs}
        self._flops = sorted(by_flops)
        self._keys = [arch_key(bundle.space.indices(by_flops[f]).tolist()) for f in self._flops]
        self.arch = lru_cache(4096)(self._arch)
        self.latency = latency

    def flops(self, key: bytes) -> int:
        """FLOPs of a subnet by its key."""
        return self.arch(key)[1]

    def cost_ms(self, key: bytes) -> float:
        """What an image of this subnet takes, now."""
        return self.latency.infer_ms(self.flops(key))

    def within(self, key: bytes, ms: float, *, alone: bool = False) -> bytes:
        """The largest subnet, up to that of ``key``, that takes at most ``ms``; else the smallest.

        ``alone``: there is time to build its session, if that fits into ``ms`` too. Never one with
        more FLOPs than that of ``key``.
        """
        wanted = self._largest(key, ms)
        if self._resident(wanted):
            return wanted
        if alone:
            wanted = self._largest(key, ms - self._build_ms)
        place = bisect_right(self._flops, self.latency.flops_inferred_within(ms / MARGIN)) - 1
        place = min(place, bisect_right(self._flops, self.flops(key)) - 1)
        least = self.flops(wanted) if alone else 0
        while place >= 0 and self._flops[place] >= least:
            if self._resident(self._keys[place]):
                return self._keys[place]
            place -= 1
        return wanted

    def built(self, build_ms: float) -> None:
        """A session was built in so long."""
        self._build_ms += _STEP * (build_ms - self._build_ms)

    def _largest(self, key: bytes, ms: float) -> bytes:
        most, own = self.latency.flops_inferred_within(ms / MARGIN), self.flops(key)
        if own <= most:
            return key
        place = bisect_right(self._flops, most) - 1
        smallest = self._keys[0] if self._flops[0] <= own else key
        return self._keys[place] if place >= 0 else smallest

    def _resident(self, key: bytes) -> bool:
        return self._is_resident(self.arch(key)[0])

    def _arch(self, key: bytes) -> tuple[Arch, int]:
        arch = self._space.from_indices(arch_indices(key))
        return arch, self._space.flops(arch)
