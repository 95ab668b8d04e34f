"""GroupDistribution: the learnable distribution B over FLOPs groups (section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.samplers.base import SamplerState


class GroupDistribution:
    """Logits and what moves them. ``floor``: the share of the uniform distribution mixed in."""

    def __init__(
        self,
        groups: int,
        floor: float,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    ) -> None:
        self.logits = torch.zeros(groups, requires_grad=True)
        self._floor = floor
        self._optimizer = optimizer([self.logits])

    def probabilities(self) -> Tensor:
        """Shape (groups,), with gradients to the logits."""
        soft = F.softmax(self.logits, dim=0)
        return (1 - self._floor) * soft + self._floor / len(soft)

    def draw(self, rng: torch.Generator) -> int:
        return int(torch.multinomial(self.probabilities().detach(), 1, generator=rng))

    def gumbel_one_hot(self, rng: torch.Generator) -> Tensor:
        """G(B) of Eq. 6: a sampled group as a one-hot with the gradient of a softmax."""
        uniform = torch.rand(len(self.logits), generator=rng).clamp_(1e-9, 1 - 1e-7)
        soft = F.softmax(self.probabilities().log() - torch.log(-torch.log(uniform)), dim=0)
        hard = F.one_hot(soft.argmax(), len(soft)).to(soft)
        return hard + soft - soft.detach()

    def ascend(self, direction: Tensor) -> None:
        """One step of the optimizer that moves the logits along ``direction``."""
        self.logits.grad = -direction
        self._optimizer.step()
        self.logits.grad = None

    def state(self) -> SamplerState:
        return {"logits": self.logits.detach().clone(), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: SamplerState) -> None:
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        (group,) = self._optimizer.param_groups
        rate = group["lr"]  # the recipe's, which a resumed run may change
        self._optimizer.load_state_dict(state["optimizer"])
        self._optimizer.param_groups[0]["lr"] = rate
