"""Int8: what a bundle holds so that its answers can run in 8-bit integers. No torch.

Their weights are made of the bundle's own when a subnet is built. What images must tell are the
ranges of activations (``models.quantize``): some hundred numbers an answer, ``int8.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.bundle.confidence import Confidence

INT8 = "int8.safetensors"


@dataclass(frozen=True)
class Int8Row:
    """A subnet in 8 bits, on images that gave no ranges.

    agreement: how often it answers what it answers in full precision. accuracy, fp32_accuracy: how
    often either is right, on the same images; None where these have no labels.
    """

    agreement: float
    accuracy: float | None = None
    fp32_accuracy: float | None = None

    @classmethod
    def of(cls, fp32: np.ndarray, int8: np.ndarray, labels: np.ndarray | None = None) -> Int8Row:
        """From the classes that are answered to each image."""
        agreement = float((fp32 == int8).mean())
        if labels is None:
            return cls(agreement)
        return cls(agreement, float((int8 == labels).mean()), float((fp32 == labels).mean()))


@dataclass(frozen=True, eq=False)
class Int8:
    """``ranges``: id of an arch -> float32 (values, 2), the least and the greatest of each value.

    ``rows``: of the frontier's archs, by id. ``confidence``: how sure subnets are in 8 bits; None:
    it was not fitted.
    """

    ranges: Mapping[str, np.ndarray]
    calibrated_on: str
    calibration_images: int
    measured_on: str
    images: int
    rows: Mapping[str, Int8Row]
    confidence: Confidence | None = None
