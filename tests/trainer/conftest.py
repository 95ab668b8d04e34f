"""What holds for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from unittest.mock import patch

import pytest

from trainer import data
from trainer.sources import read_digits


@pytest.fixture(scope="session", autouse=True)
def _digits() -> Iterator[None]:
    """Read once: half of the time that a run of few steps takes."""
    with patch.dict(data._EMBEDDED, digits=cache(read_digits)):
        yield
