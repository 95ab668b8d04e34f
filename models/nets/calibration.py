"""BatchNorm calibration: the statistics of one arch, measured on training images. Uses torch.

The supernet keeps no running statistics, because a channel's distribution depends on what feeds
it. They are measured afresh for every arch that is deployed, and the supernet is left untouched.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.nets.elastic import AbstractNet
from models.nets.normalize import StatisticsRecorder
from models.space.arch import Arch


@torch.no_grad()
def calibrate(
    net: AbstractNet, arch: Arch, batches: Iterable[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Statistics of every BatchNorm of a subnet: name -> (mean, variance), each (channels,).

    ``batches`` are normalized images as in training, float (batch, 3, side, side); the mean over
    batches of each batch's mean and (unbiased) variance is taken. Empty for nets without
    BatchNorm. Raises ValueError when there are no images.
    """
    if not net.space.norms:
        return {}
    recorder = StatisticsRecorder()
    for images in batches:
        net(images, arch, recorder)
    if not recorder.statistics:
        raise ValueError("BatchNorm calibration needs at least one batch of images")
    return recorder.statistics
