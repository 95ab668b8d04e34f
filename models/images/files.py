"""The files of a folder, as its owner means them: no hidden ones, and each real file once."""

from __future__ import annotations

import os
from collections import deque
from heapq import heappop, heappush
from pathlib import Path

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
"""Of the images that are read."""

_UNKNOWN_TO_PILLOW = (
    *(".avif", ".heic", ".heif", ".jxl", ".svg"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),  # of cameras
)
_NO_FILES = "__MACOSX"  # what macOS packs beside the files of an archive


def is_other_image(suffix: str) -> bool:
    """Whether files with this suffix, like ".bmp", are images that are not read."""
    known = Image.registered_extensions()
    return suffix not in SUFFIXES and (suffix in known or suffix in _UNKNOWN_TO_PILLOW)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is one that its owner does not mean."""
    return name.startswith(".") or name == _NO_FILES


def visible_files(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Names below a folder, however deep, with "/" between their parts; and links left out; sorted.

    An empty folder is its name and "/". What begins with "." is left out, at any depth. Links are
    followed, but a file with one of the suffixes that is found without a link, or by another one,
    is not found again: such a link is left out, as is one to a folder above, or to one found.
    """
    found: list[str] = []
    left_out: list[str] = []
    seen: set[str] = set()  # real paths of folders
    linked: set[str] = set()  # and of the files that links lead to
    folders = deque([("", os.fspath(folder))])
    links: list[tuple[str, str]] = []  # the first by name is read, wherever the disk has it

    def is_read(name: str) -> bool:
        return name.lower().endswith(suffixes) and not is_hidden(name.rpartition("/")[2])

    while folders or links:
        is_link = not folders
        name, path = heappop(links) if is_link else folders.popleft()
        real = os.path.realpath(path)
        if not os.path.isdir(real):  # noqa: PTH112 - of a million files strings are quicker
            # A store of hidden files, or of files without a suffix, is read by the links into it.
            is_found = is_read(real) and os.path.dirname(real) in seen and os.path.exists(real)  # noqa: PTH110, PTH120 - as above
            if is_read(name) and (real in linked or is_found):
                left_out.append(name)
                continue
            if is_read(name):
                linked.add(real)
            found.append(name)
            continue
        if real in seen or (
            is_link and any(other.startswith(real.rstrip("/") + "/") for other in seen)
        ):  # the latter is a folder above
            left_out.append(name)
            continue
        seen.add(real)
        is_empty = True
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                is_empty = False
                below = f"{name}/{entry.name}" if name else entry.name
                if entry.is_symlink():
                    heappush(links, (below, entry.path))
                elif entry.is_dir():
                    folders.append((below, entry.path))
                elif entry.is_file():
                    (left_out if f"{real}/{entry.name}" in linked else found).append(below)
        if is_empty:
            found.append(f"{name}/")
    return sorted(found), sorted(left_out)
