"""AbstractShiftingSampler: a learnable distribution B over FLOPs groups (section 3.2)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import (
    AbstractSampler,
    Draw,
    SamplerState,
)
from trainer.samplers.probe import Probe
from trainer.samplers.shifting.distribution import GroupDistribution


class AbstractShiftingSampler(AbstractSampler):
    """Draws a group from B and a budget in it; what moves B is the subclass's ``measure``.

    ``optimizer`` builds the one that moves B's logits. What a subclass has to remember from one
    update to the next are tensors in ``running``, changed in place; they are part of the state.
    """

    def __init__(
        self,
        space: SearchSpace,
        options: SamplerOptions,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    ) -> None:
        super().__init__(space, options)
        self.distribution = GroupDistribution(len(self.groups), options.floor, optimizer)
        self.running: dict[str, Tensor] = {}

    @abstractmethod
    def measure(
        self, probe: Probe, rng: torch.Generator
    ) -> tuple[Tensor | None, list[float | None]]:
        """The direction that gives probability to groups whose loss drops most, and the drops.

        The direction is of B's logits, shape (groups,); None: B stays as it is. Drops are loss
        before - loss now in nats, None for a group that was not measured.
        """

    @property
    @final
    def sign(self) -> int:
        """Of the paper's updates: 1 as its prose wants them, -1 as Algorithm 2 is printed."""
        return -1 if self.options.as_printed else 1

    @final
    def arch_of(self, group: int, probe: Probe) -> Arch:
        """What stands for a group at an update: its own arch, or one that the generator samples."""
        if self.archs:
            return self.archs[group]
        budget = torch.tensor(float(self.groups[group]), dtype=torch.float64)
        return probe.generate(budget).arch()

    @property
    @final
    def learns(self) -> bool:
        return True

    @final
    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        return [self.draw_in(self.distribution.draw(rng), rng)]

    @final
    def probabilities(self) -> list[float]:
        return self.distribution.probabilities().tolist()

    @final
    def update(self, probe: Probe, rng: torch.Generator) -> list[float | None]:
        direction, drops = self.measure(probe, rng)
        if direction is not None:
            self.distribution.ascend(direction)
        return drops

    @final
    def state(self) -> SamplerState:
        running = {name: tensor.clone() for name, tensor in self.running.items()}
        return {"distribution": self.distribution.state(), "running": running}

    @final
    def load_state(self, state: SamplerState) -> None:
        self.distribution.load_state(state["distribution"])
        assert state["running"].keys() == self.running.keys()
        for name, tensor in self.running.items():
            tensor.copy_(state["running"][name])
