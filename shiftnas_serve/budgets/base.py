"""AbstractBudgetKind: something a request can limit, and how it limits FLOPs.

Whatever the unit, a budget ends as an upper bound in FLOPs, because that is what the architecture
generator answers. Several budgets bind together: the smallest bound counts.
"""

from __future__ import annotations

import abc
import math
from decimal import Decimal
from typing import ClassVar, NamedTuple

from models.space import quantity
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.problem import Problem


class BadBudget(Problem):
    """What a header says cannot be read as a budget."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, detail)


class OutOfRange(Problem):
    """The budget is readable, and no subnet keeps it. ``allowed`` says what would."""

    def __init__(self, detail: str, allowed: dict[str, float]) -> None:
        super().__init__(422, detail, extra={"allowed": allowed})


class Moment(NamedTuple):
    """What the planner knows when it decides: the range served, how fast, and the time spent.

    ``knows_confidence``: whether the bundle knows how sure its subnets are.
    """

    min_flops: int
    max_flops: int
    latency: LatencyTable
    elapsed_ms: float = 0.0
    knows_confidence: bool = False


class AbstractBudgetKind(abc.ABC):
    """One kind of budget. Final subclasses are stateless and listed in ``BUDGET_KINDS``.

    ``name`` is the key in answers, ``header`` the request header, ``example`` and ``description``
    go into the API documentation.
    """

    name: ClassVar[str]
    header: ClassVar[str]
    example: ClassVar[str]
    description: ClassVar[str]
    # Whether what it allows depends on the moment: its bound is worked out when the image has been
    # decoded, a worker may go below it for the sake of what waits, and an answer that it made
    # smaller counts as degraded.
    degrades: ClassVar[bool]

    @property
    def parameter(self) -> str:
        """The header's name where only identifiers may stand: ``flops_budget``."""
        return self.header.lower().replace("-", "_")

    @abc.abstractmethod
    def parse(self, text: str) -> float:
        """The value of the header. BadBudget when it is not one."""

    def both(self, one: float, other: float) -> float:
        """Of a budget that stands twice: the smaller binds. BadBudget where neither does."""
        return min(one, other)

    @abc.abstractmethod
    def flops_bound(self, value: float, moment: Moment) -> float:
        """The largest number of FLOPs that keeps the budget now. OutOfRange when none does.

        Never below the smallest subnet: that is what OutOfRange is for.
        """

    def deadline_s(self, value: float, received_s: float) -> float:
        """When the answer must be there, on the clock of ``received_s``.

        Without end by default. Only a kind that degrades has one.
        """
        return math.inf


def parse_number(text: str, header: str, example: str) -> Decimal:
    """A non-negative decimal number with an optional exponent. BadBudget names the header."""
    try:
        return quantity.parse_number(text)
    except ValueError as error:
        raise BadBudget(f"{header}: {error}; send e.g. {example}") from None
