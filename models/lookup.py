"""What tables of names say: ``module:attribute``, imported only when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any


def look_up(table: Mapping[str, str], name: str, kind: str) -> Any:
    """What a table has under a name. ``kind``: what to call it in an error.

    Raises ValueError with the nearest name and those there are.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no {kind} {name!r}; {hint}there are: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
