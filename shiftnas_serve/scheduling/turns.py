"""Turns: which of the images that wait run next, as which subnet.

The image that is due first is next, and others of its subnet run with it. Nothing waits for a batch
to fill: a batch is what came while the one before it ran. Images with a latency budget shrink, all
by the same measure, so that each of them can be in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shiftnas_serve.planning.planner import Planner, Subnet
from shiftnas_serve.scheduling.pace import Pace
from shiftnas_serve.scheduling.pending import Pending

# Of the time that is left to the most urgent image, its batch may take this part: what comes
# meanwhile waits for all of it.
_BATCH_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Group:
    """Images to run together as ``subnet``, or to refuse because they are late (None)."""

    images: list[Pending]
    subnet: Subnet | None


def next_group(
    waiting: Sequence[Pending], now_s: float, pace: Pace, max_batch: int, threads: int
) -> Group:
    """What to do next of what waits (some, by deadline). Late images come first, and alone.

    ``threads``: how many groups run at once.
    """
    late = _late(waiting, now_s)
    if late:
        return Group(list(waiting[:late]), None)
    first = waiting[0]
    assert first.plan is not None
    planner, subnet = first.model.planner, first.plan.subnet
    if first.aim_s is not None:
        share_ms = _share_ms(waiting, now_s, pace, planner, threads)
        subnet = planner.within(subnet, share_ms, alone=len(waiting) == 1)
    slack_ms = 1000 * (first.deadline_s - now_s)
    most = max(min(int(_BATCH_SHARE * slack_ms / planner.cost_ms(subnet)), max_batch), 1)
    if first.aim_s is None:
        together = [one for one in waiting if one.plan is not None and one.plan.subnet is subnet]
        together = [one for one in together if one.model is first.model]
    else:
        together = [one for one in waiting if _may_run_as(subnet, one, first)]
    return Group(together[:most], subnet)


def _may_run_as(subnet: Subnet, one: Pending, first: Pending) -> bool:
    """Whether it waits for this subnet of the first's model, or may become as small."""
    assert one.plan is not None
    shrinks = one.aim_s is not None and one.plan.subnet.flops >= subnet.flops
    return one.model is first.model and (shrinks or one.plan.subnet is subnet)


def _late(waiting: Sequence[Pending], now_s: float) -> int:
    """How many of the most urgent images cannot be in time.

    One that would only end too late is run nevertheless if nobody waits behind it: the time is
    there, its client may still take the answer, and a prediction is not a proof. One that has an
    answer already gets that.
    """
    for place, one in enumerate(waiting):
        goes = place == len(waiting) - 1 and one.first is None
        least_ms = 0.0 if goes else one.least_ms
        if one.deadline_s >= now_s + least_ms / 1000:
            return place
    return len(waiting)


def _share_ms(
    waiting: Sequence[Pending], now_s: float, pace: Pace, planner: Planner, threads: int
) -> float:
    """What each image that shrinks may take so that all of them can be in time.

    What runs before an image counts twice. Under load every one uses up the time that it is given,
    so all would else be due just at their deadlines, and half of them late. None gets more than the
    pace at which they come.
    """
    share_ms = pace.share_ms(now_s) * threads
    ahead_ms, shrinking = 0.0, 0
    for one in waiting:
        assert one.plan is not None
        if one.aim_s is None:
            ahead_ms += planner.cost_ms(one.plan.subnet) / threads
            continue
        left_ms = 1000 * (one.aim_s - now_s) - 2 * ahead_ms
        share_ms = min(share_ms, left_ms / (2 * (shrinking // threads) + 1))
        shrinking += 1
    return share_ms
