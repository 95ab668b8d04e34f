"""Published subnets of the spaces: their archs, as their projects write them, and their numbers.

Each ``NAME.json`` beside this file is an arch and nothing else, so that it can be given to
``python -m models describe SPACE --arch models/spaces/published/NAME.json``. ``numbers.json`` says
what must come out. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """One published subnet.

    params and flops (multiply-adds) are as precise as they were published: ``"5768104"`` is exact,
    ``"203.390M"`` is rounded. None: its source does not say.
    """

    subnet: str
    space: str
    arch: Path
    params: str | None
    flops: str
    source: str


def published() -> tuple[Published, ...]:
    """All of them, in the order of ``numbers.json``."""
    rows = json.loads((FOLDER / "numbers.json").read_text(encoding="utf-8"))
    return tuple(Published(**{**row, "arch": FOLDER / row["arch"]}) for row in rows)


def agrees(value: int, text: str) -> bool:
    """Whether ``value`` is the number in ``text``, at the precision to which it is given there."""
    if not text.endswith("M"):
        return value == int(text)
    decimals = len(text.removesuffix("M").partition(".")[2])
    return f"{value / 1e6:.{decimals}f}M" == text
