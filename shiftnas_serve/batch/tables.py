"""Tables: a row for each photo, as CSV or parquet. One that is there is gone on with.

A CSV file gets a line as soon as it is known; what was cut off at its end is written again. Parquet
files cannot grow, so there the table is a folder, which gets another file every ``PART_ROWS`` rows.
"""

from __future__ import annotations

import abc
import csv
import io
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from models.bundle.disk import refused
from models.extras import require

PART_ROWS = 10_000


@dataclass(frozen=True)
class Row:
    """What is said of a photo, by which version of which model, within which budget.

    ``error``: why nothing is said; the columns before it are empty then.
    """

    photo: str
    model: str
    budget: str
    label: str | None = None
    index: int | None = None
    probability: float | None = None
    subnet: str | None = None
    flops: int | None = None
    spent_flops: int | None = None
    error: str | None = None


COLUMNS = [field.name for field in fields(Row)]


class AbstractTable(abc.ABC):
    """Use it as a context. ``done``: the photos that it has already, with their errors, if any."""

    done: Mapping[str, str | None] = MappingProxyType({})

    @abc.abstractmethod
    def write(self, row: Row) -> None:
        """Append it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Write what is left."""

    def __enter__(self) -> AbstractTable:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class CsvTable(AbstractTable):
    """On standard output, or in a file."""

    def __init__(self, path: Path | None, model: str, budget: str) -> None:
        self._file: IO[str] = sys.stdout
        self._path, whole = path, 0
        if path is not None:
            self.done, whole = _read_csv(path, model, budget)
            try:
                # A line is in the file as soon as it is written.
                self._file = path.open("a", encoding="utf-8", newline="", buffering=1)
                self._file.truncate(whole)
            except OSError as error:
                raise ValueError(refused(path, error)) from None
        if not whole:
            self._file.write(_line(COLUMNS))

    def write(self, row: Row) -> None:
        try:
            self._file.write(_line(asdict(row).values()))
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ValueError(refused(self._path, error)) from None

    def close(self) -> None:
        if self._path is not None:
            self._file.close()
        else:
            self._file.flush()


class ParquetTable(AbstractTable):
    """In a folder."""

    def __init__(self, path: Path, model: str, budget: str) -> None:
        require("parquet", "pyarrow")
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema(
            [
                *((name, pa.string()) for name in COLUMNS[:4]),
                ("index", pa.int32()),
                ("probability", pa.float64()),
                ("subnet", pa.string()),
                ("flops", pa.int64()),
                ("spent_flops", pa.int64()),
                ("error", pa.string()),
            ]
        )
        self._path, self._rows = path, list[Row]()
        try:
            path.mkdir(parents=True, exist_ok=True)
            parts = sorted(path.glob("part-*.parquet"))
            read = [*COLUMNS[:3], "error"]
            tables = [pq.read_table(part, columns=read).to_pylist() for part in parts]
        except (OSError, pa.ArrowException) as error:
            raise ValueError(refused(path, error)) from None
        numbers = (part.stem.removeprefix("part-") for part in parts)
        self._next = 1 + max((int(one) for one in numbers if one.isdecimal()), default=-1)
        rows = [row for table in tables for row in table]
        self.done = _checked(path, rows, model, budget)

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self.close()

    def close(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return
        table = pa.Table.from_pylist([asdict(row) for row in self._rows], self._schema)
        part = self._path / f"part-{self._next:05d}.parquet"
        partial = part.with_name(f".{part.name}.partial")
        try:
            pq.write_table(table, partial)
            partial.rename(part)  # a part is whole or not there
        except OSError as error:
            raise ValueError(refused(part, error)) from None
        self._rows.clear()
        self._next += 1


def open_table(csv: Path | None, parquet: Path | None, model: str, budget: str) -> AbstractTable:
    """Where rows go. Raises ValueError for a table of another model or budget, or of another kind.

    ``model``, ``budget``: what the rows to come have in these columns.
    """
    if parquet is not None:
        return ParquetTable(parquet, model, budget)
    return CsvTable(csv, model, budget)


def _line(cells: Iterable[object]) -> str:
    """Of a CSV file, that ends in a line feed. A writer of those leaves carriage returns bare."""
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _read_csv(path: Path, model: str, budget: str) -> tuple[Mapping[str, str | None], int]:
    """The photos in a file with their errors; and how many bytes its whole lines take.

    Nothing, where the file is not there.
    """
    if not path.exists():
        return {}, 0
    whole, record = 0, ""
    rows: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            for line in file:
                record += line.decode("utf-8")
                if record.endswith("\n") and record.count('"') % 2 == 0:
                    (cells,) = csv.reader([record], strict=True)
                    if not whole and cells != COLUMNS:
                        raise ValueError("its first line does not name this command's columns")
                    if whole:
                        rows.append(dict(zip(COLUMNS, cells, strict=True)))
                    whole, record = whole + len(record.encode("utf-8")), ""
    except OSError as error:
        raise ValueError(refused(path, error)) from None
    except (ValueError, csv.Error) as error:
        reason = f"{path} is there, and is not a table of this command ({error})"
        raise ValueError(f"{reason}; choose another file") from None
    if record and not whole:
        raise ValueError(f"{path} is there, and is not a table of this command; choose another")
    return _checked(path, rows, model, budget), whole


def _checked(
    path: Path, rows: Iterable[Mapping[str, Any]], model: str, budget: str
) -> Mapping[str, str | None]:
    for row in rows:
        found = (row["model"], row["budget"])
        if found != (model, budget):
            raise ValueError(
                f"{path} has rows of {found[0]} within {found[1]}, and these would be of {model} "
                f"within {budget}; choose another place"
            )
    return {row["photo"]: row["error"] or None for row in rows}
