"""Where images come from: image folders, the embedded digits (parquet files: trainer.parquet).

A source only says which encoded image has which label and what its publisher keeps apart for
testing; decoding and splitting are the same for all of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TEST_NAMES = ("test", "validation", "valid", "val")  # the first that is there
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Rows:
    """Encoded images (contents or paths), their labels (int64), and how to name row i."""

    encoded: Sequence[bytes | Path]
    labels: np.ndarray
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Rows:
        """The given row numbers, still named as they were."""
        return Rows(
            [self.encoded[row] for row in rows],
            self.labels[rows],
            lambda index: self.where(int(rows[index])),
        )


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
    rows = Rows(encoded, np.asarray(labels, dtype=np.int64), "digit {}".format)
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
    empty = [name for name, label in numbers.items() if not (labels == label).any()]
    if empty:
        raise ValueError(
            f"{path / empty[0]} has no images: allowed are {', '.join(_IMAGE_SUFFIXES)}; "
            "remove the folder if it is no class"
        )
    files = [Path(file) for file, _ in samples]
    return classes, Rows(files, labels, lambda row: str(files[row]))


def _subfolders(path: Path) -> list[Path]:
    """Sorted by name; without the hidden ones that editors and file managers leave."""
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
