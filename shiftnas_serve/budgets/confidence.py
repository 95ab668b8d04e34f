"""Confidence: how sure an answer must be, before more is spent on it."""

from __future__ import annotations

import math
from typing import ClassVar

from shiftnas_serve.budgets.base import (
    AbstractBudgetKind,
    BadBudget,
    Moment,
    OutOfRange,
    parse_number,
)


class Confidence(AbstractBudgetKind):
    """``Confidence: 0.8``. It bounds no FLOPs: it says when fewer than the budget's are enough."""

    name: ClassVar[str] = "confidence"
    header: ClassVar[str] = "Confidence"
    example: ClassVar[str] = "0.8"
    description: ClassVar[str] = (
        "How sure the answer must be, above 0 and below 1. A small subnet answers; where it is "
        "less sure, a larger one does. The FLOPs of both stay within FLOPs-Budget, and "
        "`budget.spent_flops` has what was spent. Probabilities of such an answer are calibrated. "
        "Where time is short the first answer is given, as `degraded`. 422 where the bundle does "
        "not know how sure it is."
    )
    degrades: ClassVar[bool] = False

    def parse(self, text: str) -> float:
        """Above 0 and below 1: no answer is surer."""
        value = float(parse_number(text, self.header, self.example))
        if not 0 < value < 1:
            given = f"{self.header}: {text.strip()}"
            raise BadBudget(f"{given} is not above 0 and below 1; send e.g. {self.example}")
        return value

    def both(self, one: float, other: float) -> float:
        """Neither binds more than the other: BadBudget."""
        raise BadBudget(f"{self.header} stands several times; send it once")

    def flops_bound(self, value: float, moment: Moment) -> float:
        """None. OutOfRange where the bundle cannot compare an answer with it."""
        if not moment.knows_confidence:
            raise OutOfRange(
                f"{self.header}: this bundle does not know how sure it is; ask without, or fit it "
                "(python -m trainer.confidence)",
                {},
            )
        return math.inf
