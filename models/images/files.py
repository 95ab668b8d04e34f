"""The files of a folder, as its owner means them: no hidden ones, and each real file once."""

from __future__ import annotations

import os
from collections import deque
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


def visible_files(folder: Path) -> list[str]:
    """Names below a folder, however deep, with "/" between their parts; sorted.

    An empty folder is its name and "/". What begins with "." is left out, at any depth. Links are
    followed, but a file that is found without a link, or by another one, is not found again: a link
    to a folder above adds nothing.
    """
    found: list[str] = []
    seen: set[str] = set()  # real paths: of every folder, and of the files that links lead to
    folders, links = deque([(os.fspath(folder), "")]), deque[tuple[str, str]]()
    while folders or links:
        is_link = not folders
        path, name = (links if is_link else folders).popleft()
        real = os.path.realpath(path)
        if real in seen:
            continue
        if not os.path.isdir(real):  # noqa: PTH112 - of a million files strings are quicker
            if not os.path.exists(real) or os.path.dirname(real) not in seen:  # noqa: PTH110, PTH120
                seen.add(real)
                found.append(name)
            continue
        if is_link and any(other.startswith(real.rstrip("/") + "/") for other in seen):
            continue  # a folder above
        seen.add(real)
        is_empty = True
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                is_empty = False
                below = f"{name}/{entry.name}" if name else entry.name
                if entry.is_symlink():
                    links.append((entry.path, below))
                elif entry.is_dir():
                    folders.append((entry.path, below))
                elif entry.is_file():
                    found.append(below)
        if is_empty:
            found.append(f"{name}/")
    return sorted(found)
