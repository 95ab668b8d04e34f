"""Processes: which run, and what they use, as /proc says. Linux only."""

from __future__ import annotations

import contextlib
from pathlib import Path

_PROC = Path("/proc")


def alive() -> dict[int, int]:
    """The parent of each process that runs; those that wait to be buried left out."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it may end meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    return parents


def process_tree(root: int) -> list[int]:
    """A process and its descendants."""
    parents = alive()
    found = {root} & parents.keys()
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def command_line(pid: int) -> str:
    """Empty when it has ended."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_text()
    return ""


def processor_s(pids: list[int]) -> float:
    """What they have used so far."""
    nanoseconds = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in (_PROC / str(pid) / "task").iterdir():
                nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def memory_bytes(pid: int, kind: str = "Pss") -> int:
    """Its memory, pages that it shares counted by its share; 0 when it has ended.

    ``kind``: another of the kernel's names, as ``Anonymous``: what it has allocated.
    """
    with contextlib.suppress(OSError):
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
    return 0
