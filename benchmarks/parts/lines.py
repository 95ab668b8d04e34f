"""Files of results: one JSON object a line, added to as it is measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from trainer.engine.log import json_lines

Row = dict[str, Any]
"""What a line holds."""


def read_lines(path: Path) -> list[Row]:
    """All lines.

    A last line that was cut off is left out, which is said on stderr. Raises ValueError naming any
    other line that is not an object.
    """
    found = [*json_lines(path)]
    if path.stat().st_size > (found[-1][2] if found else 0):
        print(f"{path}: its last line was cut off, and is left out", file=sys.stderr)
    return [row for _, row, _ in found]
