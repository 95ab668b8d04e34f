"""Relaxed archs: policies in place of choices, so that gradients reach the generator. Uses torch.

The matrix map of the paper (Eq. 9): a decision with policy p (one-hot, 1 x n) activates the mask
M p, where column i of M is ones up to the i-th choice. Here a size may follow from several
decisions (hidden = embedding x ratio); then the columns are the joint choices and p is the outer
product of their policies. FLOPs are contracted the same way and stay exact at one-hots.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.arch import Arch
from models.flops import FlopsRule
from models.space import Block, SearchSpace, Size


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
        return policy[[depth > block.index for depth in depths]].sum()

    def arch(self) -> Arch:
        """The arch of the largest probabilities."""
        return self.space.from_indices(
            [int(self.policies[d.name].argmax()) for d in self.space.decisions]
        )


def relax(space: SearchSpace, arch: Arch) -> Relaxed:
    """The one-hot policies of an arch."""
    return Relaxed(
        space,
        {
            d.name: torch.tensor([float(choice == arch[d.name]) for choice in d.choices])
            for d in space.decisions
        },
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


class RelaxedFlops:
    """FLOPs of policies, for a whole batch of them: the exact rule, contracted.

    float64, because FLOPs beyond 2^24 are not all float32 numbers.
    """

    def __init__(self, rule: FlopsRule) -> None:
        self._names = [decision.name for decision in rule.space.decisions]
        self._terms = [
            (term.decisions, torch.from_numpy(term.table).double()) for term in rule.terms
        ]

    def __call__(self, policies: Mapping[str, Tensor]) -> Tensor:
        """``policies[name]`` of shape (batch, choices) -> multiply-adds, float64 (batch,)."""
        each = [policies[name] for name in self._names]
        counts = [policy.shape[1] for policy in each]
        wide = torch.cat(each, dim=1).double().cpu().split(counts, dim=1)
        total: Tensor | None = None
        for decisions, table in self._terms:
            value = wide[decisions[0]] @ table.reshape(table.shape[0], -1)
            for decision in decisions[1:]:
                policy = wide[decision]
                value = value.reshape(len(policy), policy.shape[1], -1)
                value = torch.bmm(policy[:, None], value)[:, 0]
            value = value.reshape(-1)
            total = value if total is None else total + value
        assert total is not None
        return total
