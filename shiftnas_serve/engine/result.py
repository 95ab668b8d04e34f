"""Result: the answer for one image. What HTTP answers is this, written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from shiftnas_serve.answer import ModelName, Prediction
from shiftnas_serve.engine.model import Model
from shiftnas_serve.planning.planner import Plan, Subnet


class Timing(msgspec.Struct, frozen=True):
    """Milliseconds of each stage; how many images ran together.

    ``source``: where the session came from: ``resident``, ``built`` for this image, ``universal``.
    """

    decode_ms: float
    queue_ms: float
    infer_ms: float
    build_ms: float
    batch: int
    source: str

    def after(self, first: Timing) -> Timing:
        """Of both steps of an image: this is the second, and its queue began before the first."""
        took_ms = first.infer_ms + first.build_ms
        return Timing(
            self.decode_ms,
            max(self.queue_ms - took_ms, 0.0),
            self.infer_ms + first.infer_ms,
            self.build_ms + first.build_ms,
            self.batch,
            self.source,
        )


class Result(msgspec.Struct, frozen=True):
    """The classes of one image, the subnet that found them, and what was asked for.

    ``predictions``: the most probable first. ``asked``: budgets by the name of their kind;
    ``degraded``: a latency budget made the subnet smaller, or took the time for a second one.
    ``spent_flops``: of all that ran. ``probabilities``: float64 (classes,); calibrated where a
    confidence was asked for.
    """

    predictions: Sequence[Prediction]
    subnet: Subnet
    asked: Mapping[str, float]
    degraded: bool
    model: ModelName
    timing: Timing
    probabilities: np.ndarray
    spent_flops: int

    def log(self) -> dict[str, object]:
        """What a log says of it."""
        timing = self.timing
        return {
            "asked": dict(self.asked),
            "subnet": self.subnet.id,
            "flops": self.subnet.flops,
            "spent_flops": self.spent_flops,
            "degraded": self.degraded,
            "decode_ms": round(timing.decode_ms, 3),
            "queue_ms": round(timing.queue_ms, 3),
            "build_ms": round(timing.build_ms, 3),
            "infer_ms": round(timing.infer_ms, 3),
            "batch": timing.batch,
        }


def make_result(
    model: Model,
    plan: Plan,
    subnet: Subnet,
    probabilities: np.ndarray,
    top_k: int,
    timing: Timing,
) -> Result:
    """The answer of ``subnet``: that of the plan, or a smaller one that had to do."""
    best = (-probabilities).argsort(kind="stable")[:top_k]
    labels = model.bundle.labels
    return Result(
        [
            Prediction(labels[index], index, share)
            for index, share in zip(best.tolist(), probabilities[best].tolist(), strict=True)
        ],
        subnet,
        plan.asked,
        plan.degraded or subnet is not plan.subnet,
        model.name,
        timing,
        probabilities,
        plan.spent_flops + subnet.flops,
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (batch, classes) -> probabilities, float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
