"""The run's log: one JSON object a line, and the only record that plots and tables are made of."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.engine.disk import writing

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
Record = dict[str, JsonValue]


class JsonlLog:
    """Appends records to a file, each flushed as it is written.

    path: the file; its folder is made. resume_step: None starts a log, which must not exist yet;
    a number continues one, after cutting off what came later than that step: those steps run
    again. Use as a context manager, or call close().

    Raises ValueError for a log that exists (None) or that read_log would refuse (a number).
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        self.path = path
        if resume_step is None and path.exists() and path.stat().st_size:
            raise ValueError(
                f"{path} exists: resume that run, or choose another output folder for this one"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None and path.exists():
            _cut(path, resume_step)
        self._file = path.open("ab", buffering=0)  # what could not be written is not kept

    def write(self, kind: str, **fields: JsonValue) -> Record:
        """Append {"kind": kind, **fields}, and return it as it is read back.

        NaN and infinities become null: JSON has neither. Raises ValueError where the disk is full.
        """
        assert "kind" not in fields
        record: Record = {name: _finite(value) for name, value in {"kind": kind, **fields}.items()}
        line = (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode()
        with writing(self.path):
            while line:
                line = line[self._file.write(line) :]
        return record

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def set_aside(path: Path) -> None:
    """Give a log another name, since the run that wrote it begins anew. Says so on stderr."""
    if path.is_file() and path.stat().st_size:
        numbered = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in count(1))
        old = next(name for name in numbered if not name.exists())
        path.rename(old)
        print(
            f"{path.parent} has no checkpoint: the run begins anew; its old log is {old.name}",
            file=sys.stderr,
        )


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Of each line of a file: its number, its object, and the offset in bytes of its end.

    What follows the last line feed was being written when its program ended; it is left out. Raises
    ValueError naming a line that is not an object.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    end = 0
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number}, is not a JSON object; mend or remove it")
        yield number, found, end


def add_line(path: Path, row: Mapping[str, object]) -> None:
    """Add a line to such a file, in place of a last one that was cut off."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def read_log(path: Path) -> list[Record]:
    """All records. A last line that was torn when the run was killed is left out.

    Raises ValueError if the file is missing, or naming the line if any other is not a record.
    """
    return [record for record, _ in _parse(path)]


def number(record: Record, field: str) -> float:
    """A field that must be a number. Raises ValueError naming it."""
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} is {value!r} in {json.dumps(record)[:80]}: it must be a number")
    return value


def numbers(record: Record, field: str) -> list[float]:
    """A field that must be a list of numbers. Raises ValueError naming it."""
    value = record.get(field)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{field} is {value!r} in {json.dumps(record)[:80]}: it must be a list")
    return [number({field: entry}, field) for entry in value]


def _parse(path: Path) -> list[tuple[Record, int]]:
    """Records, each with the offset in bytes of its end."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the folder of a training run")
    records: list[tuple[Record, int]] = []
    for number, record, end in json_lines(path):
        if not isinstance(record.get("kind"), str):
            raise ValueError(f'{path}, line {number}, is not a record like {{"kind": "step", ...}}')
        records.append((record, end))
    return records


def _cut(path: Path, last_step: int) -> None:
    """Drop everything from the first record after `last_step` on, and a torn last line."""
    end = 0
    for record, record_end in _parse(path):
        step = record.get("step")
        if isinstance(step, int) and step > last_step:
            break
        end = record_end
    with path.open("r+b") as file:
        file.truncate(end)


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(entry) for entry in value]
    return value
