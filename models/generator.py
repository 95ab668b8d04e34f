"""The architecture generator (AG): an LSTM from budgets to a policy for every decision. Uses torch.

Paper, section 3.3: LSTM with 64 hidden units, one linear head per kind of decision, straight-
through Gumbel one-hots, decided in sequence. The paper leaves the input open; here the budget,
scaled to [0, 1] over the space's range, enters through cosine features at every step, next to the
embedding of the choice before. ``models.policy`` runs the same weights in numpy.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.relaxed import Relaxed
from models.space import SearchSpace

HIDDEN = 64
FREQUENCIES = 16
LOGIT_BOUND = 6.0
"""Logits are squashed into +-6, so that no choice ever becomes unreachable (ENAS does the same)."""


def budget_features(position: Tensor) -> Tensor:
    """Budgets scaled to [0, 1], (batch,) -> cosine features (batch, 16)."""
    return torch.cos(math.pi * position[:, None] * torch.arange(FREQUENCIES).to(position))


class ArchitectureGenerator(nn.Module):
    """Budgets in, policies out, for a batch of budgets at once."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        kinds: dict[str, int] = {}
        for decision in space.decisions:
            kinds[decision.kind] = max(kinds.get(decision.kind, 0), len(decision.choices))
        self.encode = nn.Linear(FREQUENCIES, HIDDEN)
        self.cell = nn.LSTMCell(HIDDEN, HIDDEN)
        self.heads = nn.ModuleDict({kind: nn.Linear(HIDDEN, n) for kind, n in kinds.items()})
        self.embeddings = nn.ModuleDict(
            {kind: nn.Linear(n, HIDDEN, bias=False) for kind, n in kinds.items()}
        )
        self.start = nn.Parameter(torch.zeros(HIDDEN))

    def forward(
        self,
        budgets: Tensor,
        *,
        temperature: float = 1.0,
        noise: torch.Generator | None = None,
        noisy: int | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Budgets in FLOPs, (batch,) -> (policies, log-probabilities), each (batch, choices).

        Policies are one-hot in value and softmax in gradient (straight-through). With ``noise``
        they are sampled (Gumbel), without they are the most probable choices; ``noisy`` samples
        only that many rows of the batch, from the first on. Noise comes from the given CPU
        generator, so that every process that shares a seed draws the same archs.
        """
        low, high = self.space.min_flops, self.space.max_flops
        position = ((budgets.double() - low) / (high - low)).float()
        budget = self.encode(budget_features(position))
        before = self.start.expand(len(budgets), -1)
        hidden = cell = torch.zeros_like(budget)
        policies: dict[str, Tensor] = {}
        log_probabilities: dict[str, Tensor] = {}
        for decision in self.space.decisions:
            count = len(decision.choices)
            if count == 1:
                policies[decision.name] = torch.ones(len(budgets), 1)
                log_probabilities[decision.name] = torch.zeros(len(budgets), 1)
                continue
            hidden, cell = self.cell(budget + before, (hidden, cell))
            logits = self.heads[decision.kind](hidden)[:, :count]
            logits = LOGIT_BOUND * torch.tanh(logits / LOGIT_BOUND)
            log_probabilities[decision.name] = F.log_softmax(logits, dim=1)
            if noise is not None:
                uniform = torch.rand(logits.shape, generator=noise).clamp_(1e-9, 1 - 1e-7)
                gumbel = -torch.log(-torch.log(uniform))
                if noisy is not None:
                    gumbel[noisy:] = 0
                logits = logits + gumbel
            soft = F.softmax(logits / temperature, dim=1)
            hard = F.one_hot(soft.argmax(dim=1), count).to(soft)
            policy = hard + soft - soft.detach()
            policies[decision.name] = policy
            kind = self.embeddings[decision.kind]
            assert isinstance(kind, nn.Linear)
            before = F.linear(policy, kind.weight[:, :count])
        return policies, log_probabilities

    def relaxed(self, policies: dict[str, Tensor], row: int = 0) -> Relaxed:
        """The relaxed arch of one budget of a batch."""
        return Relaxed(self.space, {name: policy[row] for name, policy in policies.items()})
