"""Memory that a step frees stays with the process: the next step takes as much again."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> None:
    """Have glibc's malloc give nothing back to the system while this process runs.

    It gives every large tensor back when it is freed, and the system clears the pages of the next
    one, which a step of large images waits for. Elsewhere nothing changes.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
