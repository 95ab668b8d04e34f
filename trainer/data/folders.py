"""Folders of images: a file an image, a folder a class (trainer.data.layout says which)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.images.files import SUFFIXES
from trainer.data.layout import (
    Files,
    also_passed_over,
    by_split,
    class_name,
    place_of_images,
    printable,
)
from trainer.data.sources import AbstractImages, Classes, Rows, Source, read_groups


class ImageFiles(AbstractImages):
    """One file per image."""

    def __init__(self, files: Sequence[str]) -> None:
        self._names = np.array([os.fsencode(file) for file in files])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> bytes:
        return Path(self._name(row)).read_bytes()

    def where(self, row: int) -> str:
        return printable(self._name(row))

    def _name(self, row: int) -> str:
        return os.fsdecode(bytes(self._names[row]))


def read_image_folder(path: Path, files: Files, passed_over: Sequence[str]) -> Source:
    """Classes are numbered in alphabetical order.

    Raises ValueError for no images, an empty class, one that only test has, and a layout that may
    be meant in two ways.
    """
    inside: dict[str, list[str]] = {}
    for name in files.images:
        folder, _, file = name.rpartition("/")
        inside.setdefault(folder, []).append(file)
    lines = list(passed_over)
    beside = inside.pop("", None)
    if beside:
        lines.append(f"{len(beside):,} images are not in a folder of a class, like {beside[0]}")
    if not inside:
        raise ValueError(
            f"no images in {path}: it needs one folder of images per class{also_passed_over(lines)}"
        )
    places = {folder: place_of_images(folder.split("/")) for folder in inside}
    groups = by_split(path, [places[folder][0] for folder in inside], list(inside))
    _check_empty(path, files, {place for place in places.values() if place[1]})

    def read(folders: list[str], classes: Classes | None) -> tuple[Classes, Rows | int]:
        without = [folder for folder in folders if places[folder][1] is None]
        if without and classes is not None and len(without) == len(folders):
            return classes, sum(len(inside[folder]) for folder in folders)
        if without:
            raise ValueError(
                f"{path / without[0] / inside[without[0]][0]} is not in a folder of a class: "
                "put it into one, or move it away"
            )
        named = {folder: class_name(places[folder][1] or "") for folder in folders}
        if classes is None:
            classes = tuple(sorted(set(named.values())))
        for folder, name in named.items():
            if name not in classes:
                raise ValueError(f"{path / folder} is a class that the training images do not have")
        names: list[str] = []
        labels: list[int] = []
        for label, folder in sorted(
            (classes.index(name), folder) for folder, name in named.items()
        ):
            names += [str(path / folder / file) for file in inside[folder]]
            labels += [label] * len(inside[folder])
        return classes, Rows.of(ImageFiles(names), np.array(labels, dtype=np.int64))

    return read_groups(printable(path.name), groups, read, lines)


def _check_empty(path: Path, files: Files, known: set[tuple[str | None, str | None]]) -> None:
    """Raises ValueError for a class of which no image can be read."""
    of_training = "train" if any(split for split, _ in known) else None
    others = [name.rpartition("/")[0] for name in files.other]
    for folder in [*files.empty, *others]:
        place = place_of_images(folder.split("/") if folder else ())
        if place[1] is not None and place not in known and place[0] == of_training:
            raise ValueError(
                f"{path / folder} has no images: allowed are {', '.join(SUFFIXES)}; "
                "remove the folder if it is not a class"
            )
