"""Parquet files with images, as Hugging Face stores them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.sources import Rows, Source

if TYPE_CHECKING:
    import pyarrow

_SPLITS = ("train", "test", "val")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


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
    files = parquet_files(path)
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
            if test_classes != classes[: len(test_classes)]:
                raise ValueError(
                    f"{groups[split][0]} has other classes than {groups['train'][0]}: "
                    f"{_few(test_classes)} against {_few(classes)}"
                )
            return Source(path.name, classes, train, test)
    return Source(path.name, classes, train, None)


def parquet_files(folder: Path) -> list[Path]:
    """The .parquet files in a folder and in its subfolders (data/, as Hugging Face lays it out)."""
    return sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")])


def _split_of(stem: str) -> str:
    """Which split a file is, by how its name starts: train, test, val, or an empty string."""
    return next((split for split in _SPLITS if stem.lower().startswith(split)), "")


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


def _few(names: Sequence[str], count: int = 6) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
