"""Options: what a client asks for beside the image, and where it must stand.

What looks like an option but is not is refused, with the right place: otherwise the largest subnet
would answer whoever wrote a budget where nobody reads it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from urllib.parse import parse_qsl

from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.budgets.asked import parse_budgets
from shiftnas_serve.library import TOP_K
from shiftnas_serve.problem import Problem

_KINDS = {kind.header.lower().encode(): kind for kind in BUDGET_KINDS}
_NAMES = [name.decode() for name in _KINDS]
# Each new name is looked at closely, which holds up all others.
_MAX_HEADERS = 100
_KINDS_BY_NAME = {kind.name: kind for kind in BUDGET_KINDS}
_PLACES = (
    f"budgets are headers ({', '.join(kind.header for kind in BUDGET_KINDS)}), top_k is of the "
    "query, the image is the body"
)
PLACES_V2 = (
    f"budgets are parameters of the request ({', '.join(kind.parameter for kind in BUDGET_KINDS)}) "
    "or headers, classification is a parameter of the output probabilities"
)
"""The same for requests of the Open Inference Protocol."""
# Encoded images: to look for keys that stand twice, nobody needs a copy of them.
_LONG_TEXT = re.compile(rb'(?<!\\)"[A-Za-z0-9+/=_-]{64,}+"')
# What people call them, by what they mean. Of latency only whole names: gateways have headers that
# end so.
_LOOKALIKES = {
    "flops": re.compile(rb".*(flop|budget).*"),
    "latency_ms": re.compile(
        rb"(x[-_])?(max[-_]?)?latency([-_]?(ms|millis|milliseconds|limit|target|max))*"
    ),
    "confidence": re.compile(rb"(x[-_])?confidence[-_]?(threshold|level)"),
    "top_k": re.compile(rb"(x[-_])?top[-_]?k"),
}


def read_budgets(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, float]:
    """Every budget that a request's headers name, by the name of its kind.

    Of one that is repeated, the smallest. Raises Problem 400 for garbage, for one that may stand
    only once, for one that is to come behind the body, and for a header that looks like one of
    them; 431 for too many headers.
    """
    if len(headers) > _MAX_HEADERS:
        raise Problem(431, f"{len(headers)} header fields; {_MAX_HEADERS} are allowed")
    asked: dict[str, float] = {}
    for name, value in headers:
        kind = _KINDS.get(name)
        if kind is not None:
            add_budgets(asked, {kind.name: value.decode("latin-1")})
        elif name == b"trailer":
            _check_trailer(value)
        else:
            _check(name[:64])
    return asked


def add_budgets(asked: dict[str, float], texts: Mapping[str, str]) -> None:
    """More of them, by the name of their kind. Raises Problem 400."""
    for name, value in parse_budgets(texts).items():
        asked[name] = _KINDS_BY_NAME[name].both(value, asked[name]) if name in asked else value


def _check_trailer(value: bytes) -> None:
    """Refuse a budget that is to come behind the body, when its subnet is chosen."""
    for name in value.lower().split(b","):
        kind = _KINDS.get(name.strip())
        if kind is not None:
            raise Problem(400, f"{kind.header} is not read behind a body; send it as a header")


@lru_cache(1000)
def _check(name: bytes) -> None:
    """Refuse what looks like a budget. To look closely takes time, and clients send the same."""
    shown = name.decode("latin-1")
    near = difflib.get_close_matches(shown, _NAMES, n=1, cutoff=0.75)
    if near:
        meant = _KINDS[near[0].encode()].name
    else:
        meant = next((what for what, one in _LOOKALIKES.items() if one.fullmatch(name)), None)
    if meant is None:
        return
    right = "?top_k=5 in the query of /classify"
    if meant != "top_k":
        kind = _KINDS_BY_NAME[meant]
        right = f"{kind.header}: {kind.example}"
    raise Problem(400, f"no header {shown!r:.60} is read; did you mean {right}?")


def read_top_k(query: bytes, classes: int) -> int:
    """How many predictions to answer; more than there are classes means all."""
    if not query:
        return min(TOP_K, classes)
    text = read_query(query, ("top_k",)).get("top_k", str(TOP_K))
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) >= 1):
        raise Problem(400, f"top_k={text!r:.40} is not a number, 1 or more")
    return min(int(text), classes)


def read_query(query: bytes, known: Sequence[str], places: str = _PLACES) -> dict[str, str]:
    """Its fields by name. Raises Problem 400 for others than ``known``, and for one given twice."""
    fields = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    names = [name for name, _ in fields]
    refuse_others(names, known, "the query", places)
    refuse_twice(names, "the query")
    return dict(fields)


def refuse_query(query: bytes) -> None:
    """Of a v2 request, whose query says nothing. Raises Problem 400."""
    read_query(query, (), PLACES_V2)


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Raises Problem 400 for a name that is given twice: one value would be lost in silence."""
    if len(set(names)) < len(names):
        twice = next(one for one, other in pairwise(sorted(names)) if one == other)
        raise Problem(400, f"{twice!r:.60} stands several times in {where}; send it once")


def refuse_repeated(text: bytes) -> None:
    """Raises Problem 400 for a key that stands twice in one object of a JSON text."""

    def look(pairs: list[tuple[str, object]]) -> None:
        refuse_twice([name for name, _ in pairs], "one object")

    json.loads(_LONG_TEXT.sub(b'""', text), object_pairs_hook=look)


def refuse_others(
    names: Iterable[str], known: Sequence[str], where: str, places: str = _PLACES
) -> None:
    """Raises Problem 400 for a name that is none of ``known``, with the ``places`` of options."""
    for name in names:
        if name not in known:
            taken = ", ".join(known) or "nothing"
            raise Problem(400, f"{where} takes {taken}, not {name!r:.60}; {places}")


def budget_texts(parameters: Mapping[str, object]) -> dict[str, str]:
    """Budgets among the parameters of a v2 request, by the name of their kind."""
    known = [*(kind.parameter for kind in BUDGET_KINDS), "binary_data_output"]
    refuse_others(parameters, known, "parameters", PLACES_V2)
    found = {}
    for kind in BUDGET_KINDS:
        value = parameters.get(kind.parameter)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise Problem(400, f"{kind.parameter} must be a number or a text")
            found[kind.name] = str(value)
    return found
