"""RateLimit: how often each API key may ask, right over all HTTP processes of one server.

The generic cell rate algorithm (ITU-T I.371): of a key it remembers one time, the one at which all
that it has asked would have been answered at its rate. That time lies in a file that the processes
share, locked for the microseconds of an update. Replicas count for themselves: three replicas let
through three times as much.
"""

from __future__ import annotations

import fcntl
import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_TIME = struct.Struct("<d")


@dataclass(frozen=True)
class Ruling:
    """allowed, or seconds to wait; requests that could follow at once; seconds until all could."""

    allowed: bool
    retry_s: float
    remaining: int
    reset_s: float


class RateLimit:
    """``rate_per_s`` in the long run, ``burst`` at once, for each of ``keys`` keys."""

    def __init__(self, path: Path, keys: int, rate_per_s: float, burst: int) -> None:
        assert keys > 0
        assert rate_per_s > 0
        assert burst >= 1
        self.rate_per_s, self.burst = rate_per_s, burst
        path.touch()
        self._file = path.open("r+b")
        self._file.truncate(keys * _TIME.size)
        self._times = mmap.mmap(self._file.fileno(), keys * _TIME.size)

    def take(self, key: int, requests: int = 1) -> Ruling:
        """Count ``requests`` of key number ``key``, unless they would be too many."""
        place = key * _TIME.size
        interval_s, burst_s = 1 / self.rate_per_s, self.burst / self.rate_per_s
        fcntl.lockf(self._file, fcntl.LOCK_EX, _TIME.size, place)
        try:
            now = time.monotonic()  # one clock for all processes of a machine
            (answered,) = _TIME.unpack_from(self._times, place)
            after = max(answered, now) + requests * interval_s
            allowed = after - now <= burst_s + 1e-9
            if allowed:
                _TIME.pack_into(self._times, place, after)
                answered = after
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _TIME.size, place)
        ahead_s = max(answered - now, 0.0)
        remaining = int((burst_s - ahead_s) * self.rate_per_s + 1e-6)
        retry_s = 0.0 if allowed else after - now - burst_s
        return Ruling(allowed, retry_s, max(remaining, 0), ahead_s)

    def close(self) -> None:
        """Give the file back."""
        self._times.close()
        self._file.close()
