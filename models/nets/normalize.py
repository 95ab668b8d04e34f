"""By which statistics BatchNorm normalizes, where they are not given. Uses torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.weights import NORM_EPSILON

TensorStatistics = Mapping[str, tuple[Tensor, Tensor]]
"""BatchNorm statistics of one arch: norm's name -> (mean, variance)."""


class AbstractNormalizer(ABC):
    """Normalizes in place of a BatchNorm, by statistics that it takes from the batch."""

    @abstractmethod
    def normalize(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x: (batch, channels, height, width); name: of the BatchNorm. Of the shape of ``x``."""


BatchStatistics = TensorStatistics | AbstractNormalizer | None
"""What a forward pass takes; None: each BatchNorm normalizes by the batch that it sees."""


class StatisticsRecorder(AbstractNormalizer):
    """Collects BatchNorm statistics: the mean over batches of each batch's mean and variance."""

    def __init__(self) -> None:
        self.batches: dict[str, int] = {}
        self.statistics: dict[str, tuple[Tensor, Tensor]] = {}

    def normalize(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        seen = self.batches.get(name, 0)
        if not seen:
            zeros = torch.zeros(x.shape[1], device=x.device)
            self.statistics[name] = (zeros, zeros.clone())
        mean, variance = self.statistics[name]
        self.batches[name] = seen + 1
        # momentum 1 / n makes torch's running average the plain mean of n batches
        return F.batch_norm(x, mean, variance, weight, bias, True, 1 / (seen + 1), NORM_EPSILON)


class SharedBatchNormalizer(AbstractNormalizer):
    """Normalizes by the statistics of a batch of which every process sees an equal share.

    average: the mean of a tensor over the processes, through which gradients flow. (As
    torch.nn.SyncBatchNorm, which runs on GPUs alone and keeps running statistics.)
    """

    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        self._average = average

    def normalize(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.float()
        variance_here, mean_here = torch.var_mean(wide, (0, 2, 3), correction=0)
        # one message; a square less another loses digits, of which float64 has enough
        mean_here = mean_here.double()
        moments = self._average(torch.stack((mean_here, variance_here + mean_here.square())))
        mean, variance = moments[0].float(), (moments[1] - moments[0].square()).float()
        scale = weight * torch.rsqrt(variance + NORM_EPSILON)
        shift = bias - mean * scale
        return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)
