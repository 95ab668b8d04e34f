"""What a folder keeps is gone on with only if it was made with the settings that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def refuse_other(where: Path, its: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Raises ValueError naming the first setting whose value is not the one asked for."""
    for name, value in asked.items():
        if its.get(name) != value:
            raise ValueError(
                f"{where} is of {name} {its.get(name)}, and {value} is asked for: name another "
                "folder (--out)"
            )
