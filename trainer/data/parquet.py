"""Parquet files with images, as Hugging Face stores them."""

from __future__ import annotations

import glob
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.images.header import ImageError
from trainer.data.sources import AbstractImages, Classes, Rows, check_labels

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_GROUPS_KEPT = 4


def read_parquet(files: Sequence[Path], classes: Classes | None) -> tuple[Classes, Rows | int]:
    """One split of a data set, in parquet files with images as Hugging Face stores them.

    Columns: an image (a struct with `bytes`, or plain bytes), named `image` or `img` where there
    are several such columns, and an integer label, named `label`, `labels` or `fine_label`; class
    names come from the file's features. Other columns are ignored, as are files without rows. No
    image is read yet. classes: of the training images, None if these are those.
    Answers the classes and the images; or how many there are, if they are not for training and
    have no labels, or negative ones, which is how unpublished labels are written.
    Raises ValueError naming the file and what is wrong with it.
    """
    import pyarrow
    import pyarrow.parquet
    from datasets import ClassLabel, Features

    kept: list[Path] = []  # those with rows
    labels: list[np.ndarray | None] = []
    groups: list[tuple[int, int, int]] = []
    names: Classes | None = None
    image_column = ""
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
                if not metadata.num_rows:
                    continue
                found, label_column = _columns(file, schema, needs_label=classes is None)
                table = None if label_column is None else opened.read(columns=[label_column])
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a readable parquet file: {_line(error)}") from error
        if kept and found != image_column:
            raise ValueError(f"{file} calls its images {found!r}, {kept[0]} does not")
        image_column = found
        groups += [
            (len(kept), group, metadata.row_group(group).num_rows)
            for group in range(metadata.num_row_groups)
        ]
        kept.append(file)
        column = None if table is None else table.column(label_column)
        if column is None or (classes is not None and column.null_count == len(column)):
            labels.append(None)
            continue
        labels.append(_integer_labels(file, column))
        label_feature = Features.from_arrow_schema(schema)[label_column]
        if isinstance(label_feature, ClassLabel):
            if names is not None and names != tuple(label_feature.names):
                raise ValueError(f"{file} has other class names than {kept[0]}")
            names = tuple(label_feature.names)
    images = ParquetImages(
        kept, image_column, np.array(groups, dtype=np.int64).reshape(len(groups), 3)
    )
    known = [part for part in labels if part is not None]
    if classes is not None and all(part.max(initial=-1) < 0 for part in known):
        return classes, len(images)
    if len(known) < len(labels):
        raise ValueError(f"{kept[labels.index(None)]} has no labels, other files have some")
    joined = np.concatenate([np.empty(0, dtype=np.int64), *known])
    checked = check_labels(joined, names or classes, images)
    if classes is not None and checked != classes[: len(checked)]:
        raise ValueError(
            f"{kept[0]} has other classes than the training images: "
            f"{_few(checked)} against {_few(classes)}"
        )
    return checked, Rows.of(images, joined)


class ParquetImages(AbstractImages):
    """One image column over several files, for reading in order: the last row groups are kept."""

    def __init__(self, files: Sequence[Path], column: str, groups: np.ndarray) -> None:
        """groups: int64, (G, 3): file, row group in it, and images in that."""
        self._files = list(files)
        self._column = column
        self._groups = groups
        self._starts = np.concatenate([[0], groups[:, 2].cumsum()])
        self._kept: OrderedDict[int, pyarrow.Array] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> bytes:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._read(group)[row - int(self._starts[group])].as_py()
        return _content(content)

    def where(self, row: int) -> str:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        file = self._groups[group, 0]
        first = self._starts[int(np.searchsorted(self._groups[:, 0], file))]
        return f"{self._files[file]}, row {row - first}"

    def for_random_access(self) -> AbstractImages:
        return ArrowImages(self._files, self._column, self._groups)

    def _read(self, group: int) -> pyarrow.Array:
        import pyarrow.parquet

        with self._lock:
            if group not in self._kept:
                file, number, _ = self._groups[group].tolist()
                try:
                    with pyarrow.parquet.ParquetFile(self._files[file]) as opened:
                        table = opened.read_row_group(number, columns=[self._column])
                except (pyarrow.ArrowException, OSError) as error:
                    raise ValueError(
                        f"{self._files[file]} cannot be read: {_line(error)}"
                    ) from error
                self._kept[group] = _bytes_of(table.column(self._column).combine_chunks())
                if len(self._kept) > _GROUPS_KEPT:
                    self._kept.popitem(last=False)
            return self._kept[group]


class ArrowImages(AbstractImages):
    """The same for reading in any order, from the Arrow copy that `datasets` keeps.

    A parquet file can only be read in whole row groups (about 100 images), so `datasets` writes
    them once, uncompressed, to its cache (HF_DATASETS_CACHE) and maps that into memory: later
    runs and all processes of a machine share it. It takes as much disk as the parquet files.
    """

    def __init__(self, files: Sequence[Path], column: str, groups: np.ndarray) -> None:
        """Arguments as for ParquetImages.

        Raises ValueError if the copy cannot be written, or is not of these images.
        """
        self._files, self._column, self._groups = list(files), column, groups
        self._data = _arrow_copy(files, column)
        if len(self._data) != groups[:, 2].sum():
            raise ValueError(
                f"the copy of {files[0]} and the like has {len(self._data):,} images, they have "
                f"{groups[:, 2].sum():,}: remove {self._data.cache_files[0]['filename']}"
            )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> bytes:
        table = self._data.data.fast_slice(row, 1)
        return _content(_bytes_of(table.column(0).combine_chunks())[0].as_py())

    def where(self, row: int) -> str:
        return ParquetImages(self._files, self._column, self._groups).where(row)


def _arrow_copy(files: Sequence[Path], column: str) -> Dataset:
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        data = load_dataset(
            "parquet",
            data_files=[glob.escape(str(file)) for file in files],  # else a pattern
            columns=[column],
            split="train",
        )
    except (DatasetGenerationError, OSError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno:  # of the system: no room, not allowed
            advice = "set HF_DATASETS_CACHE to a folder with as much room as they take"
        else:
            advice = "write the files anew, all alike, or set data_in_memory=always"
        raise ValueError(
            f"datasets cannot write its copy of {files[0]} and the like ({_line(cause)}): {advice}"
        ) from error
    assert isinstance(data, Dataset)
    return data


def _columns(file: Path, schema: pyarrow.Schema, *, needs_label: bool) -> tuple[str, str | None]:
    """The names of the image column and of the label column, which may be None if allowed."""
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
    if len(images) > 1:
        named = [name for name in _IMAGE_COLUMNS if name in images]
        if not named:
            raise ValueError(
                f"{file} has {len(images)} columns of bytes ({_few(images)}): "
                "call the one with the images image, or leave the others out"
            )
        images = named
    if not images or (needs_label and not labels):
        missing = "no image column" if not images else "no column named label"
        raise ValueError(
            f"{file} has {missing}, only {_few(schema.names)}: "
            "it needs image (bytes) and label (an integer)"
        )
    return images[0], labels[0] if labels else None


def _bytes_of(column: pyarrow.Array) -> pyarrow.Array:
    """The bytes of a column of images, which may be structs of bytes and a path."""
    import pyarrow

    if pyarrow.types.is_struct(column.type):
        return column.field(column.type.get_field_index("bytes"))
    return column


def _content(content: bytes | None) -> bytes:
    if content is None:
        raise ImageError("the image has no bytes (only a path?)", 400)
    return content


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


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
