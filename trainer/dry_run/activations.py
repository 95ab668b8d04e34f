"""ActivationBytes: what a forward pass keeps for its backward pass, counted exactly.

Peak memory of a process depends on its allocator and on what ran before; this does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


class ActivationBytes:
    """A context in which every tensor that autograd saves is counted while it is alive.

    ``excluded``: tensors that are there anyway (parameters); views of them do not count. Tensors
    that share memory count once. ``held`` is of now and ``peak`` the most, in bytes.
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        self._excluded = {t.untyped_storage().data_ptr() for t in excluded}
        self._holders: dict[int, int] = {}
        self.held = 0
        self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)

    def _pack(self, tensor: Tensor) -> _Saved:
        # a result that its own node saves would keep that node alive
        return _Saved(tensor.detach(), self)

    def hold(self, tensor: Tensor) -> None:
        """One more saved tensor that uses this memory."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self._excluded:
            return
        if place not in self._holders:
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
        self._holders[place] = self._holders.get(place, 0) + 1

    def release(self, tensor: Tensor) -> None:
        """One fewer; memory without any can be given to another tensor."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self._excluded:
            return
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.held -= storage.nbytes()


class _Saved:
    """What autograd keeps in place of a tensor: it dies when the backward pass is through."""

    def __init__(self, tensor: Tensor, counter: ActivationBytes) -> None:
        self._tensor, self._counter = tensor, counter
        counter.hold(tensor)

    def unpack(self) -> Tensor:
        return self._tensor

    def __del__(self) -> None:
        self._counter.release(self._tensor)
