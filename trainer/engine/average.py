"""WeightAverage: a moving average of the supernet's weights, which is what gets served."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.nets import build_net
from models.nets.elastic import AbstractNet

State = dict[str, Any]


class WeightAverage:
    """w_avg <- d w_avg + (1 - d) w after every step, with d the decay.

    The decay starts small and grows to ``decay``: after n updates it is at most (n + 1) / (n + 10),
    so that the average is of the last tenth of a run at most, and a short run's is not its first
    weights. BatchNorm needs no average: its statistics belong to archs and are measured afterwards.

    What a sliced step leaves as it was is averaged too, with no change of its own. The weights that
    train, w_{t-1} of Algorithm 2 and the generator are not averages.
    """

    def __init__(self, net: AbstractNet, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.net = build_net(net.space).to(next(net.parameters()).device)
        self.net = self.net.to(memory_format=torch.channels_last).requires_grad_(False)
        self.net.load_state_dict(net.state_dict())

    @torch.no_grad()
    def update(self, net: AbstractNet) -> None:
        """After a step of the optimizer."""
        decay = min(self.decay, (self.updates + 1) / (self.updates + 10))
        averages: list[Tensor] = list(self.net.parameters())
        weights: list[Tensor] = list(net.parameters())
        get_ema_multi_avg_fn(decay)(averages, weights, self.updates)
        self.updates += 1

    def state(self) -> State:
        """For a checkpoint."""
        return {"net": self.net.state_dict(), "updates": self.updates, "decay": self.decay}

    def load_state(self, state: State) -> None:
        """The reverse of ``state``; the decay is that of the recipe."""
        self.net.load_state_dict(state["net"])
        self.updates = int(state["updates"])


def served_weights(checkpoint: State) -> State:
    """What a checkpoint's run serves: the average where there is one, else the weights."""
    average = checkpoint.get("average")
    return checkpoint["net"] if average is None else average["net"]


def described_weights(checkpoint: State) -> str:
    """The same in words, for reports and provenance."""
    average = checkpoint.get("average")
    if average is None:
        return "as trained"
    return f"moving average, decay {average['decay']:g}, {average['updates']:,} updates"
