"""Where images come from: image folders, the embedded digits (parquet.py, tars.py).

A source only says which encoded image has which label and what its publisher keeps apart for
testing; decoding and splitting are the same for all of them.
"""

from __future__ import annotations

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TEST_NAMES = ("test", "validation", "valid", "val")  # the first that is there
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SPLITS = ("train", "test", "val")


class AbstractImages(ABC):
    """Encoded images, read one at a time.

    They travel to worker processes: no open files in their state, and no large lists of Python
    objects, which every worker would come to copy by touching their reference counts.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, row: int) -> bytes:
        """The file of image `row`. Raises ImageError or OSError if it has none."""

    @abstractmethod
    def where(self, row: int) -> str:
        """What to call image `row` in an error: the name it has where it is stored."""

    def for_random_access(self) -> AbstractImages:
        """The same images, for reading in any order."""
        return self

    def runs(self) -> np.ndarray | None:
        """(N,) the run of neighbours on disk that each image lies in; None: order is no matter."""
        return None


class Files(AbstractImages):
    """One file per image."""

    def __init__(self, files: Sequence[str]) -> None:
        self._names = np.array([os.fsencode(file) for file in files])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> bytes:
        return Path(self.where(row)).read_bytes()

    def where(self, row: int) -> str:
        return os.fsdecode(bytes(self._names[row]))


class Contents(AbstractImages):
    """Images in memory, called `name` and their number."""

    def __init__(self, name: str, contents: Sequence[bytes]) -> None:
        self._name = name
        self._contents = contents

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, row: int) -> bytes:
        return self._contents[row]

    def where(self, row: int) -> str:
        return f"{self._name} {row}"


@dataclass(frozen=True)
class Rows:
    """Some of the images of a source, with their labels.

    rows: int64, (N,), ascending: which images. labels: int64, (N,).
    """

    images: AbstractImages
    rows: np.ndarray
    labels: np.ndarray

    @staticmethod
    def of(images: AbstractImages, labels: np.ndarray) -> Rows:
        """All of them."""
        assert len(images) == len(labels)
        return Rows(images, np.arange(len(labels)), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The file of image `index` of these. Raises ImageError or OSError if it has none."""
        return self.images[int(self.rows[index])]

    def where(self, index: int) -> str:
        """What to call image `index` of these in an error."""
        return self.images.where(int(self.rows[index]))

    def take(self, indices: np.ndarray) -> Rows:
        """Those at `indices`, still named as they were."""
        return Rows(self.images, self.rows[indices], self.labels[indices])


@dataclass(frozen=True)
class Source:
    """A data set before decoding. test is None where its publisher made no such split."""

    name: str
    classes: tuple[str, ...]
    train: Rows
    test: Rows | None


def read_digits() -> Source:
    """scikit-learn's 1,797 handwritten digits: 8x8, 17 shades of grey (UCI, CC BY 4.0).

    They become PNG files, so that from here on they are images like any other, and a digit
    posted to the server is the same digit.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    shades, labels = load_digits(return_X_y=True)
    grey = np.rint(shades.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    encoded = []
    for image in grey:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG", compress_level=1)
        encoded.append(file.getvalue())
    rows = Rows.of(Contents("digit", encoded), np.asarray(labels, dtype=np.int64))
    return Source("digits", tuple(str(digit) for digit in range(10)), rows, None)


def read_image_folder(path: Path) -> Source:
    """A folder with one subfolder of images per class, or with train/ and test/ (val/) of those.

    Images are .jpg, .jpeg, .png or .webp; classes are numbered in alphabetical order of train/.
    Raises ValueError for no images, an empty class, or a class that only test has.
    """
    folders = {folder.name.lower(): folder for folder in _subfolders(path)}
    test = next((folders[name] for name in _TEST_NAMES if name in folders), None)
    if "train" not in folders:
        if test is not None:
            raise ValueError(f"{path} has {test.name}/ but no train/")
        classes, rows = _read_class_folders(path, None)
        return Source(path.name, classes, rows, None)
    classes, train = _read_class_folders(folders["train"], None)
    test_rows = None if test is None else _read_class_folders(test, classes)[1]
    return Source(path.name, classes, train, test_rows)


def files_by_split(path: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of a folder by the split that a word of their names says: "train", "test", "val".

    All are under "train" if no name says anything. Raises ValueError if some do and others do
    not, or if none is for training.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.stem.lower())
        found = (split for word in words for split in _SPLITS if word.startswith(split))
        groups.setdefault(next(found, ""), []).append(file)
    if set(groups) == {""}:
        return {"train": groups[""]}
    if "" in groups:
        raise ValueError(
            f"cannot tell which split {groups[''][0]} belongs to: "
            "let its name start with train, test or val, or move it away"
        )
    if "train" not in groups:
        raise ValueError(f"no train*{files[0].suffix} in {path}, only {files[0].name} and the like")
    return groups


def check_labels(
    labels: np.ndarray, classes: tuple[str, ...] | None, where: AbstractImages
) -> tuple[str, ...]:
    """Class names for labels: those given, or the numbers from 0 to the highest label.

    Raises ValueError, naming an image, for a negative label, one beyond the names given, and,
    where none are given, for numbers that no image has: labels that count from 1, or one that
    went astray.
    """
    if len(labels) == 0:
        return classes or ()
    lowest, highest = int(labels.argmin()), int(labels.argmax())
    if labels[lowest] < 0:
        raise ValueError(f"{where.where(lowest)}: label is {labels[lowest]}, it must be 0 or more")
    if classes is None:
        used = np.unique(labels)
        if len(used) != used[-1] + 1:
            missing = int(np.flatnonzero(used != np.arange(len(used)))[0])
            raise ValueError(
                f"{where.where(highest)}: label is {labels[highest]}, but no image has label "
                f"{missing}: labels count from 0 without gaps, unless class names are given"
            )
        return tuple(str(label) for label in used)
    if labels[highest] >= len(classes):
        raise ValueError(
            f"{where.where(highest)}: label is {labels[highest]}, "
            f"but there are names for {len(classes)} classes"
        )
    return classes


def _read_class_folders(
    path: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Rows]:
    """Class names and rows of path/CLASS/**/IMAGE; `classes` are those allowed, if not None."""
    from torchvision.datasets.folder import make_dataset

    found = tuple(folder.name for folder in _subfolders(path))
    if not found:
        raise ValueError(f"no images in {path}: it needs one subfolder of images per class")
    if classes is None:
        classes = found
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise ValueError(f"{path / unknown[0]} is a class that the training images do not have")
    numbers = {name: classes.index(name) for name in found}
    samples = make_dataset(str(path), numbers, extensions=_IMAGE_SUFFIXES, allow_empty=True)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    if len(samples) == 0:
        raise ValueError(f"no images in {path}: allowed are {', '.join(_IMAGE_SUFFIXES)}")
    present = set(labels.tolist())
    empty = [name for name, label in numbers.items() if label not in present]
    if empty:
        raise ValueError(
            f"{path / empty[0]} has no images: allowed are {', '.join(_IMAGE_SUFFIXES)}; "
            "remove the folder if it is no class"
        )
    return classes, Rows.of(Files([file for file, _ in samples]), labels)


def _subfolders(path: Path) -> list[Path]:
    """Sorted by name; without the hidden ones that editors and file managers leave."""
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
