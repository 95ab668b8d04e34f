"""ActivationBytes: what a forward pass keeps for its backward pass, counted exactly.

Peak memory of a process depends on its allocator and on what ran before; this does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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
        self._holders: Counter[int] = Counter()
        self.held = 0
        self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor
        )

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()

    def count(self, tensor: Tensor, by: int) -> None:
        """One more (1) or one fewer (-1) saved tensor that uses this memory."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self._excluded:
            return
        self._holders[place] += by
        if self._holders[place] == max(by, 0):  # the first, or none any more
            self.held += by * storage.nbytes()
            self.peak = max(self.peak, self.held)


class _Saved:
    """What autograd keeps in place of a tensor: it dies when the backward pass is through."""

    def __init__(self, tensor: Tensor, counter: ActivationBytes) -> None:
        # a result that its own node saves would keep that node alive
        self.tensor, self._counter = tensor.detach(), counter
        counter.count(self.tensor, 1)

    def __del__(self) -> None:
        self._counter.count(self.tensor, -1)
