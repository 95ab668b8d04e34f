"""The hosts that the contract is tested on: one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.contract.process import SERVE


@dataclass(frozen=True)
class Host:
    """How a host is started. command: what takes the server's options."""

    name: str
    command: Sequence[str] = SERVE
    slow: bool = False

    def __str__(self) -> str:
        return self.name


HOSTS = (
    Host("uvicorn"),
    Host("litserve", (*SERVE, "--server", "litserve")),
    Host("ray", (*SERVE, "--server", "ray"), slow=True),
)


def host_parameters() -> list[object]:
    """Of the fixture ``host``."""
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(host, id=host.name, marks=marks[host.slow]) for host in HOSTS]
