"""What every kind of data set is before decoding: encoded images, labels, names of classes.

A source only says which encoded image has which label and what its publisher keeps apart for
testing; decoding and splitting are the same for all of them.
"""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.layout import class_name


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
        """(N,) the run of neighbours on disk that each image lies in; None: any order will do."""
        return None


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

    def slice(self, text: str) -> Rows:
        """Those of a slice as Python writes it: ``1::2``. Raises ValueError for other text."""
        try:
            parts = [int(part) if part else None for part in text.split(":")]
            found = np.arange(len(self))[slice(*parts)] if len(parts) > 1 else np.arange(0)
        except (ValueError, TypeError):
            found = np.arange(0)
        if not len(found):
            raise ValueError(f"--rows {text}: give some of {len(self):,}, as 0:100 or 1::2")
        return self.take(found)


Classes = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A data set before decoding. test is None where its publisher made no such split.

    passed_over: what lies there and is not used, a line each.
    """

    name: str
    classes: Classes
    train: Rows
    test: Rows | None
    passed_over: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of all that decides how it is cut: its classes and the label of each training image."""
        about = json.dumps([self.classes, self.test is None])
        labels = self.train.labels.astype("<i8").tobytes()
        return hashlib.sha256(about.encode() + labels).hexdigest()[:12]


def read_groups(
    name: str,
    groups: Mapping[str, list[str]],
    read: Callable[[list[str], Classes | None], tuple[Classes, Rows | int]],
    passed_over: Sequence[str] = (),
) -> Source:
    """A source whose files are known by split.

    read: files of one split, and the classes of the training images once those are known; answers
    the classes and the images, or how many there are if none has a label. The test split is
    `test`, or `val` where that has no labels or is not there.
    """
    classes, train = read(groups["train"], None)
    assert not isinstance(train, int), "training images without labels are refused by their name"
    lines = list(passed_over)
    test: Rows | None = None
    for split in ("test", "val"):
        files = groups.get(split, [])
        if files and test is not None:
            lines.append(f"{split} is not read: test is there ({files[0]} and the like)")
        elif files:
            _, found = read(files, classes)
            if isinstance(found, int):
                lines.append(f"{found:,} images in {split} have no labels ({files[0]} ...)")
            else:
                test = found
    return Source(name, classes, train, test, tuple(lines))


def check_labels(labels: np.ndarray, classes: Classes | None, where: AbstractImages) -> Classes:
    """Class names for labels: those given, or the numbers from 0 to the highest label.

    Raises ValueError, naming an image, for a negative label, one beyond the names given, and,
    where none are given, for numbers that no image has: labels that count from 1, or one that
    went astray; and for two names that are spelt alike.
    """
    if classes is not None:
        classes = tuple(map(class_name, classes))
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise ValueError(f"two classes are called {twice!r}: give each its own name")
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
