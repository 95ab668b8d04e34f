"""Photos: the images of files, folders and parquet files, one after the other."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.bundle.disk import reason
from models.extras import require
from models.images.files import visible_files
from models.images.photos import find_photos

_ROWS = 64
_PARQUET = ".parquet"
_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")


@dataclass(frozen=True)
class Photo:
    r"""An image by its name. ``source``: a file's path, or its content; None: there is none.

    What is not UTF-8 in the name of a file stands in its photo's name as ``\xff``. A name in which
    something stands so has each of its own backslashes twice: no two files have the same.
    """

    name: str
    source: str | bytes | None


@dataclass(frozen=True)
class Source:
    """Some photos, as many as ``count``, and their names; they are read when they are asked for."""

    count: int
    names: Callable[[], Iterator[str]]
    photos: Callable[[], Iterator[Photo]]


def sources(paths: Sequence[Path], column: str = "image") -> list[Source]:
    """What the paths hold: a folder all below it, a parquet file its ``column``.

    A photo of a parquet file has the name ``FILE#ROW``. How many images of a folder have a format
    that is not read stands on standard error, and how many parquet files it has. Raises ValueError
    naming what is not there.
    """
    return [_source(path, column) for path in paths]


def _source(path: Path, column: str) -> Source:
    if path.is_dir():
        tables = sum(name.endswith(_PARQUET) for name in visible_files(path, (_PARQUET,))[0])
        if tables:
            told = "parquet files are left out; name those that hold photos themselves"
            _say(f"{path}: {tables:,} {told}")
        return _files(find_photos(path, _say))
    if not path.is_file():
        raise ValueError(f"there is no {path}; give photos, folders or parquet files")
    return _parquet(path, column) if path.suffix == _PARQUET else _files([path])


def _say(line: str) -> None:
    print(os.fsencode(line).decode("utf-8", "backslashreplace"), file=sys.stderr)


def _files(files: Sequence[Path]) -> Source:
    return Source(
        len(files),
        lambda: map(_name, files),
        lambda: (Photo(_name(file), str(file)) for file in files),
    )


def _parquet(path: Path, column: str) -> Source:
    with _opened(path) as file:  # and closed: there may be more of them than may be open at once
        names, count = file.schema_arrow.names, file.metadata.num_rows
    if column not in names:
        raise ValueError(f"{path} has no column {column!r}; --column names one of {names}")

    def rows() -> Iterator[str]:
        return (f"{_name(path)}#{row}" for row in range(count))

    def photos() -> Iterator[Photo]:
        row = rows()
        with _opened(path) as file:
            for batch in file.iter_batches(_ROWS, columns=[column]):
                for cell in batch.column(0).to_pylist():
                    yield Photo(next(row), _content(cell))

    return Source(count, rows, photos)


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
    raw = os.fsencode(file)
    name = raw.decode("utf-8", "backslashreplace")
    if _ESCAPED.search(name):
        name = raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return name


def _content(cell: Any) -> bytes | None:
    """The bytes of a cell: themselves, or as data sets of the Hugging Face Hub have them."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    return cell if isinstance(cell, bytes) else None
