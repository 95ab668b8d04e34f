"""The kinds of budget a request can name. A new kind is one file here and one line below."""

from shiftnas_serve.budgets.base import AbstractBudgetKind, BadBudget, Moment, OutOfRange
from shiftnas_serve.budgets.flops import FlopsBudget
from shiftnas_serve.budgets.latency import LatencyBudget

BUDGET_KINDS: tuple[AbstractBudgetKind, ...] = (FlopsBudget(), LatencyBudget())

__all__ = [
    "BUDGET_KINDS",
    "AbstractBudgetKind",
    "BadBudget",
    "FlopsBudget",
    "LatencyBudget",
    "Moment",
    "OutOfRange",
]
