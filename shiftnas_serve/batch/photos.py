"""Photos: the images of files, folders and parquet files, one after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.bundle.disk import reason
from models.extras import require
from models.images.photos import find_photos

_ROWS = 64


@dataclass(frozen=True)
class Photo:
    r"""An image by its name. ``source``: a file's path, or its content; None: there is none.

    What is not UTF-8 in the name of a file stands in its photo's name as ``\xff``.
    """

    name: str
    source: str | bytes | None


@dataclass(frozen=True)
class Source:
    """Some photos, as many as ``count``; they are read when they are asked for."""

    count: int
    photos: Callable[[], Iterator[Photo]]


def sources(paths: Sequence[Path], column: str = "image") -> list[Source]:
    """What the paths hold: a folder all below it, a parquet file its ``column``.

    A photo of a parquet file has the name ``FILE#ROW``. How many images of a folder have a format
    that is not read stands on standard error. Raises ValueError naming what is not there.
    """
    return [_source(path, column) for path in paths]


def _source(path: Path, column: str) -> Source:
    if path.is_dir():
        return _files(find_photos(path, _say))
    if not path.is_file():
        raise ValueError(f"there is no {path}; give photos, folders or parquet files")
    return _parquet(path, column) if path.suffix == ".parquet" else _files([path])


def _say(line: str) -> None:
    print(os.fsencode(line).decode("utf-8", "backslashreplace"), file=sys.stderr)


def _files(files: Sequence[Path]) -> Source:
    return Source(len(files), lambda: (Photo(_name(file), str(file)) for file in files))


def _parquet(path: Path, column: str) -> Source:
    with _opened(path) as file:  # and closed: there may be more of them than may be open at once
        names, count = file.schema_arrow.names, file.metadata.num_rows
    if column not in names:
        raise ValueError(f"{path} has no column {column!r}; --column names one of {names}")

    def photos() -> Iterator[Photo]:
        row = 0
        with _opened(path) as file:
            for batch in file.iter_batches(_ROWS, columns=[column]):
                for cell in batch.column(0).to_pylist():
                    yield Photo(f"{_name(path)}#{row}", _content(cell))
                    row += 1

    return Source(count, photos)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A parquet file, while the block runs. Raises ValueError where it cannot be read."""
    require("parquet", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except OSError as error:
        raise ValueError(f"cannot read {path}: {reason(error)}") from None
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {reason(error)}") from None


def _name(file: Path) -> str:
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _content(cell: Any) -> bytes | None:
    """The bytes of a cell: themselves, or as data sets of the Hugging Face Hub have them."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    return cell if isinstance(cell, bytes) else None
