"""Views: how one forward pass sees the weights. Uses torch.

``net(images)`` looks through ``Whole``, ``net(images, arch)`` through ``Sliced`` and
``net(images, relaxed)`` through ``Masked``. They differ in what a forward pass asks: a weight,
whether a block is there, and how much of an axis is active.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from models.space.arch import Arch
from models.space.relaxed import MaskMaps, Relaxed
from models.space.search_space import SearchSpace
from models.space.sizes import Block, Size, Weight
from models.space.weights import weight_slices


class AbstractView(ABC):
    """What a forward pass asks while it runs."""

    @abstractmethod
    def weight(self, parameter: Tensor, weight: Weight) -> Tensor:
        """The part of a parameter that is used."""

    @abstractmethod
    def total(self, x: Tensor, size: Size, axis: int) -> Tensor:
        """The sum over the first ``size`` entries of an axis, which stays with length 1."""

    @abstractmethod
    def present(self, block: Block | None) -> bool:
        """Whether a block has to be computed."""

    @abstractmethod
    def gate(self, residual: Tensor, block: Block | None) -> Tensor:
        """What a block adds to its input."""

    @abstractmethod
    def holds(self, size: Size) -> bool | Tensor:
        """Whether a size that is 0 or 1 is 1; its probability where decisions are relaxed."""

    @abstractmethod
    def active(self, size: Size) -> int | Tensor:
        """How many entries of an axis are active; a LayerNorm divides by it."""

    def copy(self) -> AbstractView:
        """The same at the same place of the pass, for a part of it that may run twice."""
        return self

    def go_on_from(self, copy: AbstractView) -> None:
        """Take the place in the pass that a copy has come to."""
        return


class Whole(AbstractView):
    """A network at its own size: parameters as they are. Blocks that are not there do not exist."""

    def __init__(self, arch: Arch) -> None:
        self._arch = arch

    def weight(self, parameter: Tensor, weight: Weight) -> Tensor:
        return parameter

    def total(self, x: Tensor, size: Size, axis: int) -> Tensor:
        return x.sum(axis, keepdim=True)

    def present(self, block: Block | None) -> bool:
        return True

    def gate(self, residual: Tensor, block: Block | None) -> Tensor:
        return residual

    def holds(self, size: Size) -> bool:
        return bool(size(self._arch))

    def active(self, size: Size) -> int:
        return size(self._arch)


class Sliced(Whole):
    """A subnet inside the supernet: prefixes of its parameters, fewer blocks."""

    def __init__(self, space: SearchSpace, arch: Arch) -> None:
        super().__init__(arch)
        self._slices = weight_slices(space, arch)

    def weight(self, parameter: Tensor, weight: Weight) -> Tensor:
        return parameter[self._slices[weight.name]]

    def present(self, block: Block | None) -> bool:
        return block is None or block.present(self._arch)


class Masked(AbstractView):
    """The whole supernet with masks between 0 and 1 that carry gradients to the policies.

    Channels are silenced in the weights that read them, not where they are computed, since
    (x m) W = x (m W). The gradient of the mask is the same, what the silenced channel would have
    added, but is summed over a weight instead of over a batch of activations. So channels beyond
    the active ones hold anything, and code that sums over channels without a weight asks for
    ``total``. A weight that multiplies (``Weight.positions``) reads along its second axis.
    """

    def __init__(self, maps: MaskMaps, relaxed: Relaxed) -> None:
        self._maps = maps
        self._relaxed = relaxed
        self._masks: dict[Size, Tensor | None] = {}

    def copy(self) -> Masked:
        # a mask is made by whoever asks first: a copy must not find what its twin has not made
        return Masked(self._maps, self._relaxed)

    def weight(self, parameter: Tensor, weight: Weight) -> Tensor:
        if weight.positions is not None:
            mask = self._mask(weight.shape[1], parameter.device)
            if mask is not None:
                parameter = parameter * mask.reshape(-1, *[1] * (parameter.ndim - 2))
        if weight.centred:
            mask = self._maps.kernel_mask(self._relaxed, weight.shape[-1], parameter.device)
            if mask is not None:
                parameter = parameter * mask
        return parameter

    def _mask(self, size: Size, device: torch.device) -> Tensor | None:
        if size not in self._masks:
            self._masks[size] = self._maps.mask(self._relaxed, size, device)
        return self._masks[size]

    def total(self, x: Tensor, size: Size, axis: int) -> Tensor:
        mask = self._mask(size, x.device)
        if mask is None:
            return x.sum(axis, keepdim=True)
        with torch.autocast(x.device.type, enabled=False):  # a sum keeps its precision
            return (x.float().movedim(axis, -1) @ mask.float())[..., None].movedim(-1, axis)

    def present(self, block: Block | None) -> bool:
        return True

    def gate(self, residual: Tensor, block: Block | None) -> Tensor:
        if block is None:
            return residual
        return residual * self._relaxed.gate(block).to(residual)

    def holds(self, size: Size) -> bool | Tensor:
        if not size.decisions:
            return bool(size.rule())
        return self._maps.expected(self._relaxed, size)

    def active(self, size: Size) -> int | Tensor:
        mask = self._mask(size, torch.device("cpu"))
        return size.rule() if mask is None else mask.sum()


@dataclass(frozen=True)
class Share:
    """Which images of a batch a forward pass sees: ``rows`` of ``count``.

    The others run elsewhere, or later. What is drawn at random is drawn for all of them, so that
    it does not matter to an image how its batch is shared out.
    """

    count: int
    rows: slice


class DropPath(AbstractView):
    """Another view, through which residual branches are left out at random, image by image.

    (Stochastic depth, arXiv 1603.09382.) The probability grows evenly from 0 for the first of
    ``branches`` to ``rate`` for the last; what stays is scaled so that its mean is kept. Draws
    from torch's own generator of the device. For one forward pass in training.
    """

    def __init__(
        self, view: AbstractView, rate: float, branches: int, share: Share | None = None
    ) -> None:
        self._view, self._rate, self._branches, self._share = view, rate, branches, share
        self._passed = 0

    def copy(self) -> DropPath:
        copy = DropPath(self._view.copy(), self._rate, self._branches, self._share)
        copy._passed = self._passed
        return copy

    def go_on_from(self, copy: AbstractView) -> None:
        assert isinstance(copy, DropPath)
        self._passed = copy._passed

    def weight(self, parameter: Tensor, weight: Weight) -> Tensor:
        return self._view.weight(parameter, weight)

    def total(self, x: Tensor, size: Size, axis: int) -> Tensor:
        return self._view.total(x, size, axis)

    def present(self, block: Block | None) -> bool:
        return self._view.present(block)

    def gate(self, residual: Tensor, block: Block | None) -> Tensor:
        residual = self._view.gate(residual, block)
        stays = 1 - self._rate * self._passed / max(self._branches - 1, 1)
        self._passed += 1
        share = Share(len(residual), slice(None)) if self._share is None else self._share
        shape = (share.count, *(1 for _ in residual.shape[1:]))
        return residual * residual.new_empty(shape).bernoulli_(stays)[share.rows] / stays

    def holds(self, size: Size) -> bool | Tensor:
        return self._view.holds(size)

    def active(self, size: Size) -> int | Tensor:
        return self._view.active(size)
