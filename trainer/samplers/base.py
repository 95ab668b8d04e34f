"""AbstractSampler: what the training loop asks of a sampler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.probe import Probe

SamplerState = dict[str, Any]
"""Tensors and an optimizer's own state, as torch saves them."""


@dataclass(frozen=True)
class Draw:
    """One subnet of a training step: a budget for the generator, or an arch outright.

    distil: learn from the logits of the first draw of the step instead of the labels.
    """

    budget_flops: float | None = None
    arch: Arch | None = None
    group: int | None = None
    distil: bool = False


def group_budgets(space: SearchSpace, groups: int) -> tuple[int, ...]:
    """The upper end of each FLOPs group: evenly spaced up to the largest subnet."""
    low, high = space.min_flops, space.max_flops
    return tuple(round(low + (high - low) * (k + 1) / groups) for k in range(groups))


def group_archs(space: SearchSpace, documents: Sequence[Mapping[str, object]]) -> tuple[Arch, ...]:
    """The subnets of ``SamplerOptions.archs``.

    Raises ValueError for what is not an arch of the space, and unless their FLOPs rise.
    """
    try:
        found = tuple(space.arch_from_json(document) for document in documents)
    except ValueError as error:
        raise ValueError(
            f"sampler_options.archs: {error}; set sampler_options.archs=[] to train any arch"
        ) from None
    flops = [space.flops(arch) for arch in found]
    if flops != sorted(set(flops)):
        raise ValueError(f"sampler_options.archs have {flops} FLOPs; list them by rising FLOPs")
    return found


class AbstractSampler(ABC):
    """Draws the subnets of a step; may learn from a probe every q steps (Algorithm 2).

    keeps_archs: whether ``SamplerOptions.archs`` are all that it draws and measures. moves: whether
    what it draws depends on how far the run is.
    """

    keeps_archs: ClassVar[bool] = True

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        self.space = space
        self.options = options
        self.moves = False
        self.archs = group_archs(space, options.archs)
        self.groups: tuple[int, ...] = (
            tuple(space.flops(arch) for arch in self.archs)
            if self.archs
            else group_budgets(space, options.groups)
        )

    @abstractmethod
    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        """The subnets of one step, in the order in which they run.

        progress: the share of the run that is done, 0 to 1.
        """

    def least_measured(self, times: torch.Tensor, rng: torch.Generator) -> list[int]:
        """The groups of an update: those measured least often; ties by chance.

        times: how often each was, shape (groups,).
        """
        count = min(self.options.groups_per_update, len(self.groups))
        return (times + torch.rand(len(times), generator=rng)).argsort()[:count].tolist()

    def draw_in(self, group: int, rng: torch.Generator) -> Draw:
        """A subnet of a group: its own arch, or a budget for the generator."""
        if self.archs:
            return Draw(arch=self.archs[group], group=group)
        budget = draw_budget(self.space, self.groups, group, self.options.jitter, rng)
        return Draw(budget_flops=budget, group=group)

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether ``update`` does anything: only then is w_{t-1} kept."""

    @abstractmethod
    def probabilities(self) -> list[float]:
        """Of the groups, in their order. Empty where budgets are not drawn from groups."""

    @abstractmethod
    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        """Algorithm 2: shift the distribution. Answers what was measured for each group."""

    @abstractmethod
    def state(self) -> SamplerState:
        """All that a resumed run needs."""

    @abstractmethod
    def load_state(self, state: SamplerState) -> None:
        """The reverse of ``state``."""


def draw_budget(
    space: SearchSpace, groups: tuple[int, ...], group: int, jitter: bool, rng: torch.Generator
) -> float:
    """A budget of a group: its upper end, or with ``jitter`` anywhere between its ends.

    Half of the draws of an outer group are the end of the range itself: the smallest and the
    largest subnet, which hardly any budget inside the range asks for.
    """
    upper = float(groups[group])
    if not jitter:
        return upper
    lower = float(groups[group - 1] if group else space.min_flops)
    beyond = upper - lower
    if group == 0:
        lower -= beyond
    if group == len(groups) - 1:
        upper += beyond
    budget = lower + (upper - lower) * float(torch.rand((), generator=rng, dtype=torch.float64))
    return min(max(budget, float(space.min_flops)), float(space.max_flops))
