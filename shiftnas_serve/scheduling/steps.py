"""Steps: whether an answer is sure enough, and the second subnet for an image whose is not.

``Plan`` says who shares a budget; here is all else that a confidence does to an image on its way.
"""

from __future__ import annotations

import msgspec
import numpy as np

from shiftnas_serve.engine.result import Result, softmax
from shiftnas_serve.planning.planner import Subnet
from shiftnas_serve.scheduling.backlog import Backlog
from shiftnas_serve.scheduling.pending import Pending


def probabilities(
    one: Pending, subnet: Subnet, logits: np.ndarray, plain: np.ndarray
) -> np.ndarray:
    """Of a subnet's logits (classes,) for an image: calibrated if a confidence was asked for.

    Else ``plain``, their softmax, which is what an exported subnet gives.
    """
    known = one.model.bundle.confidence
    assert one.plan is not None
    if one.plan.confidence is None or known is None:
        return plain
    return softmax(logits[None] / known.temperature(subnet.flops))[0]


def answered(one: Pending, result: Result, backlog: Backlog) -> Result | None:
    """What answers the image; None where it waits for its second subnet now.

    That has the same deadline. Where it would be late, or the first subnet was made smaller for the
    sake of others that wait, the first answer has to do.
    """
    plan = one.plan
    assert plan is not None
    if plan.second is None or result.probabilities.max() >= plan.confidence:
        return result
    first = msgspec.structs.replace(result, degraded=True)
    if result.subnet is not plan.subnet or one.cancelled:
        return first
    one.first, one.plan, one.aim_s = first, plan.after(), None
    if one.next_pixels is not None:
        one.pixels = one.next_pixels
    return None if backlog.go_on(one) else first
