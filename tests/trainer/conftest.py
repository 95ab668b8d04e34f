"""What holds for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from unittest.mock import patch

import pytest

from trainer import run_data
from trainer.data import load_splits
from trainer.splits import Splits


@pytest.fixture(scope="session", autouse=True)
def _digits() -> Iterator[None]:
    """Read and decoded once for the same settings: half of the time that a short run takes."""
    digits = cache(load_splits)

    def load(source: str, **settings) -> Splits:
        return (digits if source == "digits" else load_splits)(source, **settings)

    with patch.object(run_data, "load_splits", load):
        yield
