"""Arch: one choice per decision of a search space, as a value.

An arch is passed to whatever needs it. No module remembers an "active" one, so any number of
subnets can run side by side and none depends on the call before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

Choice = int | float


@dataclass(frozen=True)
class Arch(Mapping[str, Choice]):
    """One choice per decision: ``arch["depth.2"] -> 3``. Hashable, equal by value.

    Made by a search space (``space.arch(...)``), which checks the choices and gives decisions of
    blocks that are not there one fixed choice, so that equal subnets are equal archs.
    """

    decisions: tuple[str, ...]
    choices: tuple[Choice, ...]

    @cached_property
    def _by_name(self) -> dict[str, Choice]:
        return dict(zip(self.decisions, self.choices, strict=True))

    def __getitem__(self, name: str) -> Choice:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.decisions)

    def __len__(self) -> int:
        return len(self.decisions)

    def __hash__(self) -> int:
        return hash(self.choices)
