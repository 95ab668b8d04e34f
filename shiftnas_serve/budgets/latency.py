"""LatencyBudget: at most so many milliseconds inside the server."""

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

# A week; above it a latency budget does not limit anything.
_CEILING_MS = 7 * 24 * 3600 * 1000.0


class LatencyBudget(AbstractBudgetKind):
    """``Latency-Budget: 25``: milliseconds from the complete request to the answer."""

    name: ClassVar[str] = "latency_ms"
    header: ClassVar[str] = "Latency-Budget"
    example: ClassVar[str] = "25"
    description: ClassVar[str] = (
        "Milliseconds from the complete request to the answer, inside the server. The largest "
        "subnet that is predicted to answer in time serves; with FLOPs-Budget both bind. While so "
        "many wait that not even the smallest subnet would be in time, requests are refused with "
        "429; one whose turn comes too late after all gets 504."
    )
    degrades: ClassVar[bool] = True

    def parse(self, text: str) -> float:
        """Milliseconds."""
        value = float(min(parse_number(text, self.header, self.example), _CEILING_MS))
        if value == 0:
            raise BadBudget(f"{self.header}: {text!r} is not above 0 ms; send e.g. {self.example}")
        return value

    def deadline_s(self, value: float, received_s: float) -> float:
        return received_s + value / 1000

    def flops_bound(self, value: float, moment: Moment) -> float:
        """What could be computed in the time that is left if nothing else waited.

        The worker goes below that for the sake of what waits and will come (``waiting``). A budget
        that even an idle server cannot keep is out of range.
        """
        smallest_ms = moment.latency.least_ms(moment.min_flops)
        if value < smallest_ms:
            enough_ms = math.ceil(1000 * smallest_ms) / 1000
            raise OutOfRange(
                f"{self.header}: {value:g} ms is less than the {enough_ms:g} ms that this "
                "server needs for the smallest subnet; ask for more time",
                {"min_latency_ms": enough_ms},
            )
        left_ms = value - moment.elapsed_ms - moment.latency.after_ms
        most = moment.latency.flops_inferred_within(left_ms)
        return max(most, moment.min_flops)
