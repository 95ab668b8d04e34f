"""FlopsBudget: at most so many multiply-adds for the image."""

from __future__ import annotations

from typing import ClassVar

from models.space.quantity import parse_flops
from shiftnas_serve.budgets.base import AbstractBudgetKind, BadBudget, Moment, OutOfRange


class FlopsBudget(AbstractBudgetKind):
    """``FLOPs-Budget: 1.3G``. One multiply-add is one FLOP."""

    name: ClassVar[str] = "flops"
    header: ClassVar[str] = "FLOPs-Budget"
    example: ClassVar[str] = "4M"
    description: ClassVar[str] = (
        "Upper bound on multiply-adds for this image (1 multiply-add = 1 FLOP): an integer, a "
        "decimal, an exponent (1.3e9) or a K/M/G suffix (1.3G). Absent: the largest subnet. Above "
        "the largest subnet: the largest serves. Below the smallest: 422 with the allowed range."
    )
    degrades: ClassVar[bool] = False

    def parse(self, text: str) -> int:
        """Whole FLOPs, rounded down (a subnet's FLOPs are whole, so the bound is the same)."""
        try:
            return parse_flops(text)
        except ValueError as error:
            raise BadBudget(f"{self.header}: {error}") from None

    def flops_bound(self, value: float, moment: Moment) -> float:
        """The value itself. OutOfRange below the smallest subnet."""
        if value < moment.min_flops:
            raise OutOfRange(
                f"{self.header}: {value:.0f} FLOPs is below the smallest subnet; ask for "
                f"{moment.min_flops} to {moment.max_flops} (more is served by the largest)",
                {"min_flops": moment.min_flops, "max_flops": moment.max_flops},
            )
        return value
