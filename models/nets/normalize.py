"""By which statistics BatchNorm normalizes, where they are not given. Uses torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.space.weights import SharedStatistics

TensorStatistics = Mapping[str, tuple[Tensor, Tensor]]
"""BatchNorm statistics of one arch: norm's name -> (mean, variance)."""


def on_device(statistics: TensorStatistics, device: str) -> TensorStatistics:
    """The same statistics, in another device's memory."""
    return {name: (mean.to(device), var.to(device)) for name, (mean, var) in statistics.items()}


class AbstractNormalizer(ABC):
    """Normalizes in place of a BatchNorm, by statistics that it takes from the batch."""

    @abstractmethod
    def normalize(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> Tensor:
        """x: (batch, channels, height, width); name: of the BatchNorm. Of the shape of ``x``.

        ``epsilon`` is added to variances.
        """


class StatisticsRecorder(AbstractNormalizer):
    """Collects BatchNorm statistics: the mean over batches of each batch's mean and variance."""

    def __init__(self) -> None:
        self.batches: dict[str, int] = {}
        self.statistics: dict[str, tuple[Tensor, Tensor]] = {}

    def normalize(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> Tensor:
        seen = self.batches.get(name, 0)
        if not seen:
            zeros = torch.zeros(x.shape[1], device=x.device)
            self.statistics[name] = (zeros, zeros.clone())
        mean, variance = self.statistics[name]
        self.batches[name] = seen + 1
        # momentum 1 / n makes torch's running average the plain mean of n batches
        return F.batch_norm(x, mean, variance, weight, bias, True, 1 / (seen + 1), epsilon)


class FrozenStatistics:
    """One set of statistics for all archs, which does not move (``SharedStatistics``).

    A pretrained network's own, under which its weights go on learning: measured anew on a batch,
    or on a thousand photos, they cost more than training wins back (docs/experiments).
    """

    def __init__(self, shared: SharedStatistics, device: str | torch.device = "cpu") -> None:
        self.shared = shared

        def here(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(array)).to(device)

        self._norms = {name: (here(m), here(v)) for name, (m, v) in shared.norms.items()}
        self._centres = {name: here(centre) for name, centre in shared.centres.items()}

    def of(self, norm: str, conv: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (channels,), of what ``conv`` gives with this part of it."""
        mean, variance = (of[: len(weight)] for of in self._norms[norm])
        if conv in self._centres:
            each = weight.flatten(1)
            mean = mean + each @ self._centres[conv][: each.shape[1]]
        return mean, variance


BatchStatistics = TensorStatistics | FrozenStatistics | AbstractNormalizer | None
"""What a forward pass takes; None: each BatchNorm normalizes by the batch that it sees."""


def given_statistics(
    statistics: BatchStatistics, norm: str, conv: str, weight: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of a BatchNorm; None where they are taken from the batch.

    ``norm`` follows the convolution ``conv``, of which ``weight`` is the part in use.
    """
    if statistics is None or isinstance(statistics, AbstractNormalizer):
        return None
    if isinstance(statistics, FrozenStatistics):
        return statistics.of(norm, conv, weight)
    return statistics[norm]


class SharedBatchNormalizer(AbstractNormalizer):
    """Normalizes by the statistics of a batch of which every process sees an equal share.

    average: the mean of a tensor over the processes. (As torch.nn.SyncBatchNorm, which runs on GPUs
    alone and keeps running statistics.)
    """

    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        self._average = average

    def normalize(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> Tensor:
        normalized = _SharedBatchNorm.apply(self._average, x, weight, bias, epsilon)
        assert isinstance(normalized, Tensor)
        return normalized


class _SharedBatchNorm(torch.autograd.Function):
    """BatchNorm of one share of a batch, by torch's own kernels: one message each way."""

    # torch types it as taking anything; each function takes what it takes
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        average: Callable[[Tensor], Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
    ) -> Tensor:
        # running statistics that do not run: of their precision are those that come back
        unused = torch.zeros_like(bias), torch.ones_like(bias)
        mean_here, variance_here = torch.batch_norm_update_stats(x, *unused, 0.0)
        # a square less another loses digits, of which float64 has enough
        wide = mean_here.double()
        moments = average(torch.stack((wide, variance_here.double() + wide.square())))
        mean = moments[0].to(mean_here.dtype)
        variance = (moments[1] - moments[0].square()).to(mean_here.dtype)
        ctx.average, ctx.epsilon = average, epsilon
        ctx.save_for_backward(x, weight, mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)

    # (once_differentiable loses the name of its first argument)
    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        epsilon = ctx.epsilon
        x, weight, mean, variance = ctx.saved_tensors
        # as if the statistics were given, and then what they add: they depend on every x
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, epsilon, [True] * 3
        )
        of_all = ctx.average(torch.stack((to_weight, to_bias))) / (x.numel() // x.shape[1])
        slopes = of_all * -(weight * torch.rsqrt(variance + epsilon))
        to_x += F.batch_norm(x, mean, variance, slopes[0], slopes[1], False, 0.0, epsilon)
        return None, to_x, to_weight, to_bias, None
