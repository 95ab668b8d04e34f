"""The budgets of one request, read from what it says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from models.space.quantity import MAX_LENGTH
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.problem import Problem

# Callers send the same few texts again and again.
_KINDS = {kind.name: kind for kind in BUDGET_KINDS}
_PARSERS = {kind.name: lru_cache(4096)(kind.parse) for kind in BUDGET_KINDS}


def parse_budgets(texts: Mapping[str, str | float | None]) -> dict[str, float]:
    """Budgets by the name of their kind; None: it is not asked for.

    Raises Problem 400, and ValueError for a kind that there is not.
    """
    asked: dict[str, float] = {}
    for name, text in texts.items():
        if name not in _KINDS:
            raise ValueError(
                f"no kind of budget is called {name!r}; there are: {', '.join(_KINDS)}"
            )
        if text is None:
            continue
        header = _KINDS[name].header
        try:
            text = text if isinstance(text, str) else repr(float(text))
        except (TypeError, ValueError, OverflowError) as error:
            detail = f"{header}: {error}; send e.g. {_KINDS[name].example}"
            raise Problem(400, detail) from None
        if len(text) > MAX_LENGTH:  # nothing so long is remembered
            raise Problem(400, f"{header}: longer than {MAX_LENGTH} characters")
        asked[name] = _PARSERS[name](text)
    return asked
