"""Elastic layers and the base of every net. Uses torch.

A layer holds the supernet's parameters and the space's description of them; the view it is called
with says which part to use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.nets.depthwise import depthwise_conv2d
from models.nets.normalize import AbstractNormalizer, BatchStatistics, given_statistics
from models.nets.recompute import RunBlock, run_again, run_once
from models.nets.view import AbstractView, DropPath, Masked, Share, Sliced, Whole
from models.space.arch import Arch
from models.space.relaxed import MaskMaps, Relaxed
from models.space.search_space import SearchSpace


class AbstractNet(nn.Module, ABC):
    """A network of a space, at the size of ``own_arch``.

    ``net(images)`` runs it whole, ``net(images, arch)`` runs a smaller subnet by slicing,
    ``net(images, relaxed)`` runs masks. Images: float (batch, 3, side, side), any side; logits:
    (batch, classes). In training mode BatchNorm normalizes by the batch; in evaluation mode it
    needs ``statistics``, which belong to one arch. ``drop_path``: the largest probability with
    which a residual branch is left out (``DropPath``); for training only. ``share``: which images
    of a larger batch these are; None for all of one. ``recompute``: keep no activations inside
    blocks, and run them again for their gradients (``models.nets.recompute``).
    """

    def __init__(self, space: SearchSpace, arch: Arch) -> None:
        super().__init__()
        self.space = space
        self.own_arch = arch
        self._mask_maps = MaskMaps(space)

    def forward(
        self,
        images: Tensor,
        arch: Arch | Relaxed | None = None,
        statistics: BatchStatistics = None,
        *,
        drop_path: float = 0.0,
        share: Share | None = None,
        recompute: bool = False,
    ) -> Tensor:
        view = self._view(arch)
        if drop_path:
            view = DropPath(view, drop_path, self.branches, share)
        return self.run(images, view, statistics, run_again if recompute else run_once)

    def features(
        self, images: Tensor, arch: Arch | None = None, statistics: BatchStatistics = None
    ) -> list[Tensor]:
        """What a subnet gives to dense tasks: the last map of each stride, from fine to coarse.

        Each is float (batch, channels, side / stride, side / stride): of a CNN at strides 2 to 32
        (as its space has them, images of any side), of a ViT one map of its patches.
        """
        return self.maps(images, self._view(arch), statistics)

    def _view(self, arch: Arch | Relaxed | None) -> AbstractView:
        if arch is None:
            return Whole(self.own_arch)
        assert self.own_arch == self.space.largest, "only the supernet has smaller subnets"
        if isinstance(arch, Relaxed):
            return Masked(self._mask_maps, arch)
        return Sliced(self.space, arch)

    @property
    @abstractmethod
    def branches(self) -> int:
        """How many residual branches could be left out."""

    @abstractmethod
    def run(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
        run_block: RunBlock = run_once,
    ) -> Tensor:
        """The forward pass: the one place where the network is written."""

    @abstractmethod
    def maps(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
        run_block: RunBlock = run_once,
    ) -> list[Tensor]:
        """The last map of each stride; what ``run`` classifies comes from the last of them."""

    def parameter_for(self, name: str) -> nn.Parameter:
        """An uninitialized parameter of the size it has in this net."""
        return nn.Parameter(torch.empty(self.space.weight[name].shape_at(self.own_arch)))


class ElasticBatchNorm(nn.Module):
    """BatchNorm without running statistics: they belong to archs, not to the supernet.

    ``forward`` normalizes by the batch; where statistics are given, ``folded`` takes its place.
    """

    def __init__(self, net: AbstractNet, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight = net.parameter_for(f"{name}.weight")
        self.bias = net.parameter_for(f"{name}.bias")
        self._weight = net.space.weight[f"{name}.weight"]
        self._bias = net.space.weight[f"{name}.bias"]
        self._epsilon = net.space.norm_epsilon
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
    ) -> Tensor:
        weight, bias = view.weight(self.weight, self._weight), view.weight(self.bias, self._bias)
        if isinstance(statistics, AbstractNormalizer):
            return statistics.normalize(self.name, x, weight, bias, self._epsilon)
        if not self.training:
            raise ValueError(
                f"{self.name}: BatchNorm statistics belong to an arch; pass statistics= "
                "(models.nets.calibration) or call net.train() to normalize by the batch"
            )
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self._epsilon)

    def folded(
        self, conv: Tensor, view: AbstractView, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight and bias with which the convolution before it gives what this would."""
        weight, bias = view.weight(self.weight, self._weight), view.weight(self.bias, self._bias)
        scale = weight * torch.rsqrt(variance + self._epsilon)
        return conv * scale.view(-1, 1, 1, 1), bias - mean * scale


class _BiasGradient(torch.autograd.Function):
    """A convolution's output as it is; the gradient of the bias that it added.

    On a CPU torch's own gradient of it can cost as much as the rest of the convolution's.
    """

    # torch types it as taking anything; each function takes what it takes
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (gradient,) = grad_outputs
        return gradient, gradient.sum((0, 2, 3))


class ElasticConv2d(nn.Module):
    """Convolution, BatchNorm, activation. ``folded``: a bias in place of the BatchNorm."""

    def __init__(
        self,
        net: AbstractNet,
        name: str,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: str | None,
        folded: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self._weight = net.space.weight[f"{name}.weight"]
        self.weight = net.parameter_for(f"{name}.weight")
        self.bias = nn.Parameter(torch.zeros(self.weight.shape[0])) if folded else None
        self.norm = None if folded else ElasticBatchNorm(net, f"{name}.norm")
        self._stride, self._depthwise, self._activation = stride, depthwise, activation
        nn.init.kaiming_normal_(self.weight, mode="fan_out" if not depthwise else "fan_in")

    def forward(
        self,
        x: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
    ) -> Tensor:
        weight = view.weight(self.weight, self._weight)
        bias, norm, learned = self.bias, self.norm, None
        if norm is not None:
            given = given_statistics(statistics, norm.name, self.name, weight)
            if given is not None:  # spares a pass over the map, and a copy of it for the gradient
                weight, learned = norm.folded(weight, view, *given)
                bias, norm = learned.detach(), None
        if self._depthwise:
            x = depthwise_conv2d(x, weight, bias, self._stride)
        else:
            x = F.conv2d(x, weight, bias, self._stride, weight.shape[-1] // 2)
        if learned is not None and learned.requires_grad:
            x = _BiasGradient.apply(x, learned)
        if norm is not None:
            x = norm(x, view, statistics)
        if self._activation is not None:
            x = ACTIVATIONS[self._activation](x)
        return x


class ElasticPointwise(nn.Module):
    """A 1x1 convolution alone, with a bias if the space has one."""

    def __init__(self, net: AbstractNet, name: str) -> None:
        super().__init__()
        self._weight = net.space.weight[f"{name}.weight"]
        self._bias = net.space.weight.get(f"{name}.bias")
        self.weight = net.parameter_for(f"{name}.weight")
        self.bias = None if self._bias is None else net.parameter_for(f"{name}.bias")
        if self.weight.numel():  # an arch may need none of it: a shortcut between equal widths
            nn.init.kaiming_normal_(self.weight, mode="fan_out")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        weight = view.weight(self.weight, self._weight)
        bias = None
        if self.bias is not None and self._bias is not None:
            bias = view.weight(self.bias, self._bias)
        return F.conv2d(x, weight, bias)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all (Hu et al., arXiv 1709.01507)."""

    def __init__(self, net: AbstractNet, name: str, activation: str, gate: str) -> None:
        super().__init__()
        self.reduce = ElasticPointwise(net, f"{name}.reduce")
        self.expand = ElasticPointwise(net, f"{name}.expand")
        self._activation, self._gate = ACTIVATIONS[activation], ACTIVATIONS[gate]

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        hidden = self._activation(self.reduce(x.mean((2, 3), keepdim=True), view))
        return x * self._gate(self.expand(hidden, view))


class ElasticLinear(nn.Module):
    """A linear layer on the last axis, with a bias. Truncated normal weights of deviation 0.02."""

    def __init__(self, net: AbstractNet, name: str) -> None:
        super().__init__()
        self.weight = net.parameter_for(f"{name}.weight")
        self.bias = net.parameter_for(f"{name}.bias")
        self._weight = net.space.weight[f"{name}.weight"]
        self._bias = net.space.weight[f"{name}.bias"]
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        weight, bias = view.weight(self.weight, self._weight), view.weight(self.bias, self._bias)
        return F.linear(x, weight, bias)


ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
