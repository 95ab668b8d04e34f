"""The architecture generator (AG): an LSTM from budgets to a policy for every decision. Uses torch.

Paper, section 3.3: LSTM with 64 hidden units, one linear head per kind of decision, straight-
through Gumbel one-hots, decided in sequence. The paper leaves the input open; here the budget,
scaled to [0, 1] over the space's range, enters through cosine features at every step, next to the
embedding of the choice before. The last decisions know what is left of the budget
(``models.tail``). ``models.policy`` runs the same weights in numpy.

It decides for a batch of budgets at once, on the CPU. What does not depend on the decisions before
is computed once for all decisions: a step of it is short, and made of small operations.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.relaxed import Relaxed
from models.space import SearchSpace
from models.tail import tail_of

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
        self._tail = tail_of(space)
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
        budgets = budgets.double()
        budget = self.encode(budget_features(((budgets - low) / (high - low)).float()))
        from_budget = F.linear(budget, self.cell.weight_ih, self.cell.bias_ih + self.cell.bias_hh)
        from_choice = {
            kind: F.linear(self.cell.weight_ih, layer.weight.T).T
            for kind, layer in self._layers(self.embeddings)
        }
        heads = dict(self._layers(self.heads))
        from_hidden = self.cell.weight_hh.T
        gumbel = self._gumbel(len(budgets), noise, noisy)
        entry = from_budget + F.linear(self.start, self.cell.weight_ih)
        hidden = cell = torch.zeros_like(budget)
        policies: dict[str, Tensor] = {}
        log_probabilities: dict[str, Tensor] = {}
        indices = np.zeros((len(budgets), len(self.space.decisions)), np.int64)
        gaps: np.ndarray | None = None
        for place in self._tail.order:
            decision = self.space.decisions[place]
            count = len(decision.choices)
            if count == 1:
                policies[decision.name] = torch.ones(len(budgets), 1)
                log_probabilities[decision.name] = torch.zeros(len(budgets), 1)
                continue
            gates = torch.addmm(entry, hidden, from_hidden)
            enter, forget, _, leave = torch.sigmoid(gates).chunk(4, dim=1)
            update = torch.tanh(gates[:, 2 * HIDDEN : 3 * HIDDEN])
            cell = torch.addcmul(forget * cell, enter, update)
            hidden = leave * torch.tanh(cell)
            head = heads[decision.kind]
            logits = F.linear(hidden, head.weight[:count], head.bias[:count])
            logits = LOGIT_BOUND * torch.tanh(logits / LOGIT_BOUND)
            if place in self._tail.decisions:
                if gaps is None:
                    gaps = self._tail.gaps(indices, budgets.detach().numpy())
                logits = logits - torch.from_numpy(self._tail.toll(gaps))
            log_probabilities[decision.name] = F.log_softmax(logits, dim=1)
            if gumbel is not None:
                logits = logits + gumbel[place]
            soft = F.softmax(logits / temperature, dim=1)
            chosen = soft.detach().argmax(dim=1)
            policy = torch.eye(count)[chosen] + (soft - soft.detach())
            policies[decision.name] = policy
            indices[:, place] = chosen.numpy()
            if gaps is not None:
                gaps = self._tail.after(gaps, indices[:, place])
            entry = torch.addmm(from_budget, policy, from_choice[decision.kind][:count])
        in_order = [decision.name for decision in self.space.decisions]
        return (
            {name: policies[name] for name in in_order},
            {name: log_probabilities[name] for name in in_order},
        )

    @staticmethod
    def _layers(layers: nn.ModuleDict) -> list[tuple[str, nn.Linear]]:
        return [(kind, layer) for kind, layer in layers.items() if isinstance(layer, nn.Linear)]

    def _gumbel(
        self, batch: int, noise: torch.Generator | None, noisy: int | None
    ) -> list[Tensor] | None:
        """Gumbel noise for every decision, (batch, choices) each; zero beyond ``noisy`` rows."""
        if noise is None:
            return None
        counts = [len(decision.choices) for decision in self.space.decisions]
        uniform = torch.rand(batch, sum(counts), generator=noise).clamp_(1e-9, 1 - 1e-7)
        gumbel = uniform.log_().neg_().log_().neg_()
        if noisy is not None:
            gumbel[noisy:] = 0
        return list(gumbel.split(counts, dim=1))

    def relaxed(self, policies: dict[str, Tensor], row: int = 0) -> Relaxed:
        """The relaxed arch of one budget of a batch."""
        return Relaxed(self.space, {name: policy[row] for name, policy in policies.items()})
