"""Files of results: one JSON object a line, added to as it is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""What a line holds."""


def read_lines(path: Path) -> list[Row]:
    """All lines.

    A last line that was cut off is left out, which is said on stderr. Raises ValueError naming any
    other line that is not an object.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        print(f"{path}: its last line was cut off, and is left out", file=sys.stderr)
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is not a JSON object; mend or remove it")
        rows.append(row)
    return rows


def add_line(path: Path, row: Mapping[str, object]) -> None:
    """Add a line, in place of a last one that was cut off."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")
