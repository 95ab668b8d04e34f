"""What ``/classify`` answers: servers write it, clients read it, ``/openapi.json`` describes it."""

from __future__ import annotations

from typing import Any

import msgspec


class Prediction(msgspec.Struct, frozen=True):
    """One class and how probable it is, 0 to 1."""

    label: str
    index: int
    probability: float


class Subnet(msgspec.Struct, frozen=True):
    """What answered: its multiply-adds for an image, its parameters, its choices."""

    id: str
    flops: int
    params: int
    arch: dict[str, Any]


class Budget(msgspec.Struct, frozen=True):
    """What was asked for, and what became of it.

    ``degraded``: a latency budget made the subnet smaller, or took the time for a second one.
    ``spent_flops``: of all that ran; more than the subnet's where a smaller one was not sure.
    """

    flops: float | None = None
    latency_ms: float | None = None
    confidence: float | None = None
    degraded: bool = False
    spent_flops: int = 0


class ModelName(msgspec.Struct, frozen=True):
    """Of which bundle the subnet is, and in what it computes: ``fp32``, ``bf16``, ``int8``."""

    name: str
    version: str
    precision: str = "fp32"


class Classification(msgspec.Struct, frozen=True):
    """The classes of a photo, the most probable first."""

    predictions: tuple[Prediction, ...]
    budget: Budget
    model: ModelName
    request_id: str
    subnet: Subnet
