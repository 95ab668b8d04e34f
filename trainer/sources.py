"""Where images come from: parquet files, image folders, the embedded digits.

A source only says which encoded image has which label and what its publisher keeps apart for
testing; decoding and splitting are the same for all of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow

_TRAIN_NAMES = ("train",)
_TEST_NAMES = ("test",)
_VALIDATION_NAMES = ("validation", "valid", "val")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


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


def read_parquet(path: Path) -> Source:
    """A parquet file, or a folder of them, with images as Hugging Face stores them.

    Columns: an image (a struct with `bytes`, or plain bytes) and an integer label, named
    `label`, `labels` or `fine_label`; class names come from the file's features. In a folder,
    file names that start with train, test, or val say which split they are; without a test
    split (or with one whose labels are all negative, that is unpublished) val is the test
    split. Other columns are ignored.
    Raises ValueError naming the file and what is wrong with it.
    """
    if path.is_file():
        classes, rows = _read_parquet_files([path])
        return Source(path.stem, classes, rows, None)
    files = sorted(path.rglob("*.parquet"))
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file.stem), []).append(file)
    if set(groups) == {""}:
        classes, rows = _read_parquet_files(files)
        return Source(path.name, classes, rows, None)
    if "" in groups:
        raise ValueError(
            f"cannot tell which split {groups[''][0]} belongs to: "
            "let its name start with train, test or val, or move it away"
        )
    if "train" not in groups:
        raise ValueError(f"no train*.parquet in {path}, only {files[0].name} and the like")
    classes, train = _read_parquet_files(groups["train"])
    for split in ("test", "val"):
        if split in groups:
            test_classes, test = _read_parquet_files(groups[split], unlabelled=split == "test")
            if len(test) == 0:
                continue
            if not set(test_classes) <= set(classes) or (
                test_classes != classes[: len(test_classes)]
            ):
                raise ValueError(
                    f"{groups[split][0]} has other classes than {groups['train'][0]}: "
                    f"{_few(test_classes)} against {_few(classes)}"
                )
            return Source(path.name, classes, train, test)
    return Source(path.name, classes, train, None)


def read_image_folder(path: Path) -> Source:
    """A folder with one subfolder of images per class, or with train/ and test/ (val/) of those.

    Images are .jpg, .jpeg, .png or .webp; classes are numbered in alphabetical order of train/.
    Raises ValueError for no images, an empty class, or a class that only test has.
    """
    folders = {folder.name.lower(): folder for folder in sorted(path.iterdir()) if folder.is_dir()}
    train_name = next((name for name in _TRAIN_NAMES if name in folders), None)
    test_name = next((n for n in (*_TEST_NAMES, *_VALIDATION_NAMES) if n in folders), None)
    if train_name is None and test_name is None:
        classes, rows = _read_class_folders(path, None)
        return Source(path.name, classes, rows, None)
    if train_name is None:
        raise ValueError(f"{path} has {folders[str(test_name)].name}/ but no train/")
    classes, train = _read_class_folders(folders[train_name], None)
    if test_name is None:
        return Source(path.name, classes, train, None)
    _, test = _read_class_folders(folders[test_name], classes)
    return Source(path.name, classes, train, test)


def _split_of(stem: str) -> str:
    """Which split a file is, by how its name starts: train, test, val, or an empty string."""
    name = stem.lower()
    for split, starts in (
        ("train", _TRAIN_NAMES),
        ("test", _TEST_NAMES),
        ("val", _VALIDATION_NAMES),
    ):
        if name.startswith(starts):
            return split
    return ""


def _read_parquet_files(
    files: list[Path], *, unlabelled: bool = False
) -> tuple[tuple[str, ...], Rows]:
    """Class names and rows of files that hold one split.

    unlabelled: negative labels are allowed if all are negative; then there are no rows.
    """
    import pyarrow
    import pyarrow.parquet
    from datasets import ClassLabel, Features

    encoded: list[bytes | Path] = []
    labels: list[np.ndarray] = []
    names: tuple[str, ...] | None = None
    starts: list[int] = []
    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
            image_column, label_column = _columns(file, schema)
            table = pyarrow.parquet.read_table(file, columns=[image_column, label_column])
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a readable parquet file: {_line(error)}") from error
        label_feature = Features.from_arrow_schema(schema)[label_column]
        if isinstance(label_feature, ClassLabel):
            if names is not None and names != tuple(label_feature.names):
                raise ValueError(f"{file} has other class names than {files[0]}")
            names = tuple(label_feature.names)
        starts.append(len(encoded))
        encoded.extend(_image_bytes(file, table.column(image_column)))
        labels.append(_integer_labels(file, table.column(label_column)))

    def where(row: int) -> str:
        file = max(index for index, start in enumerate(starts) if start <= row)
        return f"{files[file]}, row {row - starts[file]}"

    joined = np.concatenate(labels)
    if unlabelled and len(joined) and joined.max() < 0:
        return names or (), Rows([], joined[:0], where)
    if len(joined) and joined.min() < 0:
        raise ValueError(
            f"{where(int(joined.argmin()))}: label is {joined.min()}, it must be 0 or more"
        )
    if names is None:
        names = tuple(str(label) for label in range(int(joined.max(initial=-1)) + 1))
    if len(joined) and joined.max() >= len(names):
        raise ValueError(
            f"{where(int(joined.argmax()))}: label is {joined.max()}, "
            f"but the file names {len(names)} classes"
        )
    return names, Rows(encoded, joined, where)


def _columns(file: Path, schema: pyarrow.Schema) -> tuple[str, str]:
    """The names of the image column and of the label column."""
    import pyarrow

    images = [
        field.name
        for field in schema
        if pyarrow.types.is_binary(field.type)
        or pyarrow.types.is_large_binary(field.type)
        or (
            pyarrow.types.is_struct(field.type)
            and field.type.get_field_index("bytes") >= 0
            and field.type.field("bytes").type in (pyarrow.binary(), pyarrow.large_binary())
        )
    ]
    labels = [name for name in _LABEL_COLUMNS if name in schema.names]
    if not images or not labels:
        missing = "no image column" if not images else "no column named label"
        raise ValueError(
            f"{file} has {missing}, only {_few(schema.names)}: "
            "it needs image (bytes) and label (an integer)"
        )
    return images[0], labels[0]


def _image_bytes(file: Path, column: pyarrow.ChunkedArray) -> list[bytes]:
    import pyarrow

    if pyarrow.types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]
    contents = column.to_pylist()
    for row, content in enumerate(contents):
        if content is None:
            raise ValueError(f"{file}, row {row}: the image has no bytes (only a path?)")
    return contents


def _integer_labels(file: Path, column: pyarrow.ChunkedArray) -> np.ndarray:
    import pyarrow

    if not pyarrow.types.is_integer(column.type):
        raise ValueError(f"{file}: labels are {column.type}, they must be integers from 0")
    if column.null_count:
        row = column.to_pylist().index(None)
        raise ValueError(f"{file}, row {row}: the label is missing")
    return column.to_numpy().astype(np.int64)


def _read_class_folders(
    path: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Rows]:
    """Class names and rows of path/CLASS/**/IMAGE; `classes` are those allowed, if not None."""
    from torchvision.datasets.folder import make_dataset

    found = tuple(sorted(folder.name for folder in path.iterdir() if folder.is_dir()))
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


def _few(names: Sequence[str], count: int = 6) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
