"""Relaxed archs: policies in place of choices, so that gradients reach the generator. Uses torch.

The matrix map of the paper (Eq. 9): a decision with policy p (one-hot, 1 x n) activates the mask
M p, where column i of M is ones up to the i-th choice. Here a size may follow from several
decisions (hidden = embedding x ratio); then the columns are the joint choices and p is the outer
product of their policies. A cost contracted the same way is exact at one-hots, where alone it is
asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.space.arch import Arch
from models.space.rule import CostRule
from models.space.search_space import SearchSpace
from models.space.sizes import Block, Size


@dataclass(frozen=True, eq=False)
class Relaxed:
    """One policy per decision: probabilities over its choices, shape (choices,), with gradients."""

    space: SearchSpace
    policies: Mapping[str, Tensor]

    def joint(self, decisions: Sequence[str]) -> Tensor:
        """The outer product of some policies, flattened: shape (product of choices,)."""
        joint = self.policies[decisions[0]]
        for name in decisions[1:]:
            joint = (joint[:, None] * self.policies[name][None]).reshape(-1)
        return joint

    def gate(self, block: Block) -> Tensor:
        """The probability that a block is there: the sum over depths beyond its index."""
        policy = self.policies[block.depth]
        depths = self.space.decision[block.depth].choices
        return policy[[i for i, depth in enumerate(depths) if depth > block.index]].sum()

    def arch(self) -> Arch:
        """The arch of the largest probabilities."""
        return self.space.from_indices(
            [int(self.policies[d.name].argmax()) for d in self.space.decisions]
        )


class MaskMaps:
    """The matrices M of Eq. 9, one for each size of a space, made when first asked for."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._maps: dict[tuple[Size, torch.device], Tensor] = {}
        self._values: dict[Size, Tensor] = {}

    def mask(self, relaxed: Relaxed, size: Size, device: torch.device) -> Tensor | None:
        """Ones for active channels, zeros beyond: shape (largest size,). None if never masked."""
        if not size.decisions:
            return None
        key = (size, device)
        if key not in self._maps:
            self._maps[key] = self._matrix(size, centred=False).to(device)
        return self._maps[key] @ relaxed.joint(size.decisions).to(device)

    def kernel_mask(self, relaxed: Relaxed, size: Size, device: torch.device) -> Tensor | None:
        """The centre crop of a kernel of side ``size``: shape (side, side), None if fixed."""
        if not size.decisions:
            return None
        key = (size, device)
        if key not in self._maps:
            self._maps[key] = self._matrix(size, centred=True).to(device)
        side = size(self._space.largest)
        return (self._maps[key] @ relaxed.joint(size.decisions).to(device)).reshape(side, side)

    def expected(self, relaxed: Relaxed, size: Size) -> Tensor:
        """The mean of a size under the policies: a scalar."""
        joint = relaxed.joint(size.decisions)
        if size not in self._values:
            decisions = [self._space.decision[name] for name in size.decisions]
            values = [size.rule(*c) for c in itertools.product(*(d.choices for d in decisions))]
            self._values[size] = torch.tensor(values, dtype=torch.float32)
        return self._values[size].to(joint) @ joint

    def _matrix(self, size: Size, *, centred: bool) -> Tensor:
        decisions = [self._space.decision[name] for name in size.decisions]
        full = size(self._space.largest)
        columns = []
        for choices in itertools.product(*(d.choices for d in decisions)):
            active = size.rule(*choices)
            if centred:
                side = torch.zeros(full)
                start = (full - active) // 2
                side[start : start + active] = 1
                columns.append(torch.outer(side, side).reshape(-1))
            else:
                columns.append((torch.arange(full) < active).float())
        return torch.stack(columns, dim=1)


class RelaxedCost:
    """The cost of straight-through policies, for a whole batch of them.

    The rule is linear in each policy. At one-hots its value is the exact rule's, and its gradient
    is what every other choice would cost, both looked up in integer tables (``CostRule``).
    """

    def __init__(self, rule: CostRule) -> None:
        self._rule = rule
        self._names = [decision.name for decision in rule.decisions]

    def __call__(self, policies: Mapping[str, Tensor]) -> Tensor:
        """``policies[name]``, one-hot (batch, choices) -> costs, float64 (batch,)."""
        return _OneHotCost.apply(self._rule, *(policies[name] for name in self._names))


class _OneHotCost(torch.autograd.Function):
    """The rule at one-hots as one operation of autograd."""

    # torch types it as taking anything; each function takes what it takes
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rule: CostRule, *policies: Tensor
    ) -> Tensor:
        counts = [policy.shape[1] for policy in policies]
        wide = np.concatenate([policy.detach().cpu().numpy() for policy in policies], axis=1)
        _, chosen = (wide > 0.5).nonzero()
        indices = chosen.reshape(len(wide), len(counts)) - (np.cumsum(counts) - counts)
        assert np.abs(wide.sum(axis=1) - len(counts)).max() < 1e-3, "policies are one-hot in value"
        ctx.rule, ctx.indices, ctx.counts = rule, indices, counts
        ctx.device, ctx.dtype = policies[0].device, policies[0].dtype
        return torch.from_numpy(rule.batch(indices).astype(np.float64))

    # (once_differentiable loses the name of its first argument)
    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor | None, ...]:
        (to_cost,) = grad_outputs
        wide = to_cost[:, None].numpy() * ctx.rule.costs_of_choices(ctx.indices)
        gradient = torch.from_numpy(wide).to(ctx.device, ctx.dtype)
        return None, *gradient.split(ctx.counts, dim=1)
