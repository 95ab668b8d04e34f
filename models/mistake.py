"""The first mistake that pydantic finds in a document, in one line. No torch."""

from __future__ import annotations

from pydantic import ValidationError


def in_words(error: ValidationError) -> str:
    """The field, what it is and what it should be: ``flops.max is 'x'; it should be ...``."""
    first = error.errors(include_url=False)[0]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
    field = "".join(parts).removeprefix(".")
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"there is no field {field!r}; leave it out"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    should = first["msg"].replace("Input", "it", 1)
    return f"{field or 'the document'} is {first['input']!r:.60}; {should}"
