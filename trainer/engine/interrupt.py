"""SIGINT and SIGTERM, so that a stop loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The run was asked to stop by a signal. As KeyboardInterrupt, no ``Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Interrupt:
    """While entered, SIGINT and SIGTERM raise ``Stopped``; inside ``deferred`` they set a flag.

    A second signal inside ``deferred`` raises after all, for a user who cannot wait. With
    ``repeats`` it does not: torchrun sends again what the terminal has sent to every process, and
    kills by itself a process that does not end in time. No signal raises inside ``held``: a write
    that has begun ends first.
    """

    def __init__(self, *, repeats: bool = False) -> None:
        self.signal: int | None = None
        self._repeats = repeats
        self._is_deferred = False
        self._is_held = False
        self._is_urgent = False

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a signal: the block looks at ``signal`` and ends in its own time."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raise nothing before the end of the block, which writes what must not be cut off."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_urgent:
            assert self.signal is not None
            raise Stopped(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, number
        self._is_urgent |= not self._is_deferred or not (first or self._repeats)
        if self._is_urgent and not self._is_held:
            raise Stopped(number)
