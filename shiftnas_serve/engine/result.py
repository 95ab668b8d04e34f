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


class Result(msgspec.Struct, frozen=True):
    """The classes of one image, the subnet that found them, and what was asked for.

    ``predictions``: the most probable first. ``asked``: budgets by the name of their kind;
    ``degraded``: a latency budget made the subnet smaller. ``probabilities``: float64 (classes,).
    """

    predictions: Sequence[Prediction]
    subnet: Subnet
    asked: Mapping[str, float]
    degraded: bool
    model: ModelName
    timing: Timing
    probabilities: np.ndarray

    def log(self) -> dict[str, object]:
        """What a log says of it."""
        timing = self.timing
        return {
            "asked": dict(self.asked),
            "subnet": self.subnet.id,
            "flops": self.subnet.flops,
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
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (batch, classes) -> probabilities, float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
