"""Answer: a classified image as JSON and headers.

The parts that repeat are written once; a serializer of its own for the rest would cost a small
subnet's time again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from starlette.types import Receive, Scope, Send

from models.bundle.folder import Bundle
from shiftnas_serve.budgets import BUDGET_KINDS
from shiftnas_serve.frames import Done
from shiftnas_serve.planner import Plan


@dataclass(slots=True)
class Classified:
    """One image's answer. probabilities: float64 (classes,)."""

    plan: Plan
    done: Done
    decode_ms: float
    probabilities: np.ndarray

    def log(self) -> dict[str, object]:
        """What a log says of it."""
        return {
            "asked": dict(self.plan.asked),
            "subnet": self.plan.subnet.id,
            "flops": self.plan.subnet.flops,
            "degraded": self.plan.degraded,
            "decode_ms": round(self.decode_ms, 3),
            "queue_ms": round(self.done.queue_ms, 3),
            "build_ms": round(self.done.build_ms, 3),
            "infer_ms": round(self.done.infer_ms, 3),
            "batch": self.done.batch,
        }


@dataclass(slots=True)
class Answer:
    """A 200 that is JSON, as ASGI wants it."""

    body: bytes
    headers: list[tuple[bytes, bytes]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


class AnswerWriter:
    """Writes the answers of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        # The beginning of a prediction of each class.
        self._classes = [
            json.dumps({"label": label, "index": index})[:-1] + ', "probability": '
            for index, label in enumerate(bundle.labels)
        ]
        self._model = json.dumps({"name": bundle.name, "version": bundle.version})

    def write(self, one: Classified, top_k: int, request_id: str) -> Answer:
        """The ``top_k`` most probable classes, what answered, what it cost."""
        plan, done, probabilities = one.plan, one.done, one.probabilities
        best = (-probabilities).argsort(kind="stable")[:top_k]
        shares = zip(best.tolist(), probabilities[best].tolist(), strict=True)
        predictions = ", ".join([f"{self._classes[index]}{share!r}}}" for index, share in shares])
        budget = budget_json(tuple(plan.asked.items()), plan.degraded)
        body = (
            f'{{"predictions": [{predictions}], "budget": {budget}, '
            f'"model": {self._model}, "request_id": "{request_id}", '
            f'"subnet": {plan.subnet.described}}}'
        ).encode()
        timing = (
            f"decode;dur={one.decode_ms:.2f}, queue;dur={done.queue_ms:.2f}, "
            f'infer;dur={done.infer_ms:.3f}, build;dur={done.build_ms:.2f};desc="{done.source}"'
        )
        return Answer(
            body,
            [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"served-flops", b"%d" % plan.subnet.flops),
                (b"server-timing", timing.encode()),
            ],
        )


@lru_cache(4096)
def budget_json(asked: tuple[tuple[str, float], ...], degraded: bool) -> str:
    """What an answer says of the budgets that were asked for."""
    nothing = {kind.name: None for kind in BUDGET_KINDS}
    return json.dumps({**nothing, **dict(asked), "degraded": degraded})


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (classes,) -> probabilities, float64 (classes,)."""
    # The ufuncs themselves: for ten classes the methods' detours take longer than the work.
    powers = np.exp(logits.astype(np.float64) - np.maximum.reduce(logits))
    powers /= np.add.reduce(powers)
    return powers
