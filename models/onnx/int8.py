"""A subnet in 8-bit integers, quantized by ONNX Runtime on images of its kind. No torch here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from models.onnx.graph_template import INPUT


class _Images(CalibrationDataReader):
    """One image at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self._left: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray]:
        image = next(self._left, None)
        return {} if image is None else {INPUT: image[None]}


def quantized(model: bytes, images: np.ndarray) -> bytes:
    """A self-contained ONNX model, weights and activations in 8 bits, inputs and outputs as before.

    images: float32 (count, 3, side, side), prepared as for the model; ranges of activations are
    their extremes. Weights are signed and have a scale for each channel, activations are unsigned:
    what the VNNI instructions of x86 multiply. Older x86 adds pairs of products in 16 bits, which
    may overflow: weights of 7 bits (``reduce_range``) would be needed there.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, ready, made = (Path(folder) / name for name in ("given", "ready", "made"))
        given.write_bytes(model)
        quant_pre_process(str(given), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(made),
            _Images(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return made.read_bytes()
