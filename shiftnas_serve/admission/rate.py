"""RateLimit: how often each API key may ask.

The generic cell rate algorithm (ITU-T I.371): of a key it remembers one time, the one at which all
that it has asked would have been answered at its rate. (Libraries for this count in windows of
whole seconds, in which a burst of its own size cannot be said.) Each process counts for itself:
three replicas let through three times as much.
"""

from __future__ import annotations

import math
import time

from shiftnas_serve.problem import Problem


class RateLimit:
    """``rate_per_s`` in the long run, ``burst`` at once, for each key."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        assert rate_per_s > 0
        assert burst >= 1
        self._rate_per_s, self.burst = rate_per_s, burst
        self._answered_s: dict[int, float] = {}

    def take(self, key: int, images: int = 1) -> None:
        """Count images of key number ``key``. Raises Problem: 400 never so many, 429 too many now.

        Those count that are answered, not those that are refused.
        """
        if images > self.burst:
            raise Problem(400, f"{images} images at once; send {self.burst} or fewer in a request")
        now = time.monotonic()
        before = max(self._answered_s.get(key, 0.0), now)
        burst_s = self.burst / self._rate_per_s
        after = before + images / self._rate_per_s
        if after - now <= burst_s + 1e-9:
            self._answered_s[key] = after
            return
        remaining = max(int((burst_s - before + now) * self._rate_per_s + 1e-6), 0)
        raise Problem(
            429,
            f"this key may send {self._rate_per_s:g} images a second, {self.burst} at once",
            headers={
                "Retry-After": str(math.ceil(after - now - burst_s)),
                "RateLimit-Policy": f'"key";q={self.burst};w={math.ceil(burst_s)}',
                "RateLimit": f'"key";r={remaining};t={math.ceil(before - now)}',
            },
        )
