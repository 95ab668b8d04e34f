"""The kinds of budget a request can name. A new kind is one file here and one line below."""

import math
from collections.abc import Mapping

from shiftnas_serve.budgets.base import AbstractBudgetKind, BadBudget, Moment, OutOfRange
from shiftnas_serve.budgets.confidence import Confidence
from shiftnas_serve.budgets.flops import FlopsBudget
from shiftnas_serve.budgets.latency import LatencyBudget

BUDGET_KINDS: tuple[AbstractBudgetKind, ...] = (FlopsBudget(), LatencyBudget(), Confidence())

_DEGRADING = {kind.name for kind in BUDGET_KINDS if kind.degrades}


def may_degrade(asked: Mapping[str, float]) -> bool:
    """Whether one of the budgets (by the name of their kind) depends on the moment."""
    return not _DEGRADING.isdisjoint(asked)


def earliest_deadline_s(asked: Mapping[str, float], received_s: float) -> float:
    """The earliest time by which one of the budgets wants its answer; without end if none does."""
    if not may_degrade(asked):  # only those that depend on the moment have one
        return math.inf
    named = ((kind, asked[kind.name]) for kind in BUDGET_KINDS if kind.name in asked)
    return min(kind.deadline_s(value, received_s) for kind, value in named)


__all__ = [
    "BUDGET_KINDS",
    "AbstractBudgetKind",
    "BadBudget",
    "Confidence",
    "FlopsBudget",
    "LatencyBudget",
    "Moment",
    "OutOfRange",
    "earliest_deadline_s",
    "may_degrade",
]
