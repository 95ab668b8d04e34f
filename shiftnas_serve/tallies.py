"""Tallies: numbers that every process counts for itself, and anyone adds up.

A file for each process, mapped into memory: float64, one after the other, in the same places in
every file. To count is an addition in memory, without a lock or a system call. (prometheus_client's
own files for several processes cost a request of a small subnet a tenth of its time in the HTTP
process; of the library, metrics use the format.) The files of dead processes stay: what they
counted is still true, and a sum that falls would look like a restart.
"""

from __future__ import annotations

import itertools
import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_NUMBER_BYTES = 8


class Tallies:
    """``size`` numbers of this process, and the sums over all. One thread of a process counts."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self.numbers = memoryview(bytearray(size * _NUMBER_BYTES)).cast("d")

    def open(self) -> None:
        """Count in a file of this process from now on; again after a fork. Raises OSError.

        Takes the disk space now: on a disk that is full by then the first number on a new page of a
        sparse file would end the process (SIGBUS).
        """
        # Not the file of a process that had the same number, and has ended.
        names = (self._folder / f"{os.getpid()}.{n}" for n in itertools.count())
        path = next(name for name in names if not name.exists())
        with path.open("x+b") as file:
            os.posix_fallocate(file.fileno(), 0, self._size * _NUMBER_BYTES)
            mapped = mmap.mmap(file.fileno(), self._size * _NUMBER_BYTES)
        self.numbers = memoryview(mapped).cast("d")

    def sums(self) -> list[float]:
        """Over all processes, also those that have ended."""
        total = np.zeros(self._size)
        for path in self._folder.iterdir():
            numbers = np.fromfile(path, np.float64)
            if len(numbers) == self._size:  # else it is just being made
                total += numbers
        return total.tolist()

    def zero(self, pid: int, place: int) -> None:
        """Set a number of a process that has ended to 0: what is not a count dies with it."""
        for path in self._folder.glob(f"{pid}.*"):
            numbers = np.memmap(path, np.float64, "r+")
            numbers[place] = 0.0


@dataclass(frozen=True, slots=True)
class Count:
    """A number that rises; one that is said as it is now may fall again."""

    tallies: Tallies
    place: int

    def inc(self, by: float = 1.0) -> None:
        self.tallies.numbers[self.place] += by


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram: how many values were up to each bound, how many above all, and their sum."""

    tallies: Tallies
    place: int
    bounds: Sequence[float]

    @staticmethod
    def size(bounds: Sequence[float]) -> int:
        """How many numbers it takes."""
        return len(bounds) + 2

    def observe(self, value: float) -> None:
        numbers, place = self.tallies.numbers, self.place
        numbers[place + bisect_left(self.bounds, value)] += 1
        numbers[place + len(self.bounds) + 1] += value
