"""The architecture generator (AG): an LSTM from budgets to a policy for every decision. Uses torch.

Paper, section 3.3: LSTM with 64 hidden units, one linear head per kind of decision, straight-
through Gumbel one-hots, decided in sequence. The paper leaves the input open; here the budget,
scaled to [0, 1] over the space's range, enters through cosine features at every step, next to the
embedding of the choice before. The last decisions know what is left of the budget
(``models.generator.tail``).

It decides for a batch of budgets at once, on the CPU. ``models.generator.policy`` has the same
equations in numpy, for the server.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from models.costs.cost import Cost
from models.costs.flops import flops_cost
from models.generator.policy import FREQUENCIES, HIDDEN, LOGIT_BOUND, choices_of_kinds
from models.generator.tail import tail_of
from models.space.relaxed import Relaxed
from models.space.search_space import SearchSpace


def one_numpy_thread() -> AbstractContextManager[Any]:
    """Around training: the generator's matrices are so small that a second thread only costs.

    On two cores a step took three times as long. Does not concern torch's own threads.
    """
    return threadpool_limits(1, user_api="blas")


class ArchitectureGenerator(nn.Module):
    """Budgets in, policies out, for a batch of budgets at once.

    ``cost``: what budgets count, in whole numbers; FLOPs, unless another is given.
    """

    def __init__(self, space: SearchSpace, cost: Cost | None = None) -> None:
        super().__init__()
        self.space = space
        self.cost = flops_cost(space) if cost is None else cost
        assert self.cost.space is space, "a cost is of one space"
        kinds = choices_of_kinds(space)
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
        """Budgets, (batch,) -> (policies, log-probabilities), each (batch, choices).

        Policies are one-hot in value and softmax in gradient (straight-through). With ``noise``
        they are sampled (Gumbel), without they are the most probable choices; ``noisy`` samples
        only that many rows of the batch, from the first on. Noise comes from the given CPU
        generator, so that every process that shares a seed draws the same archs.
        """
        space, cost, tail, batch = self.space, self.cost, tail_of(self.cost), len(budgets)
        budgets = budgets.double()
        position = ((budgets - cost.min) / (cost.max - cost.min)).float()
        budget = self.encode(torch.cos(math.pi * position[:, None] * torch.arange(FREQUENCIES)))
        counts = [len(decision.choices) for decision in space.decisions]
        gumbel = self._gumbel(batch, noise, noisy)
        columns = None if gumbel is None else gumbel.split(counts, dim=1)
        policies = [torch.ones(batch, 1)] * len(counts)
        log_probabilities = [torch.zeros(batch, 1)] * len(counts)
        indices = np.zeros((batch, len(counts)), np.int64)
        gaps: np.ndarray | None = None
        entry, hidden = budget + self.start, torch.zeros(batch, HIDDEN)
        cell = hidden
        of_kind = {
            kind: (*head.parameters(), self.embeddings.get_parameter(f"{kind}.weight"))
            for kind, head in self.heads.items()
        }
        for place in tail.decided:
            count = counts[place]
            weight, bias, embedding = of_kind[space.decisions[place].kind]
            if count < len(bias):  # a slice costs as much as a product of matrices this small
                weight, bias, embedding = weight[:count], bias[:count], embedding[:, :count]
            hidden, cell = self.cell(entry, (hidden, cell))
            raw = F.linear(hidden, weight, bias)
            logits = LOGIT_BOUND * torch.tanh(raw / LOGIT_BOUND)
            if place in tail.decisions:
                if gaps is None:
                    gaps = tail.gaps(indices, budgets.detach().numpy())
                logits = logits - torch.from_numpy(tail.toll(gaps))
            log_probabilities[place] = F.log_softmax(logits, dim=1)
            noised = logits if columns is None else logits + columns[place]
            chosen = noised.argmax(dim=1)
            indices[:, place] = chosen
            if gaps is not None:
                gaps = tail.after(gaps, indices[:, place])
            soft = F.softmax(noised / temperature, dim=1)
            policies[place] = F.one_hot(chosen, count) + (soft - soft.detach())
            entry = budget + F.linear(policies[place], embedding)
        names = [decision.name for decision in space.decisions]
        return dict(zip(names, policies, strict=True)), dict(
            zip(names, log_probabilities, strict=True)
        )

    def _gumbel(
        self, batch: int, noise: torch.Generator | None, noisy: int | None
    ) -> Tensor | None:
        """Gumbel noise for every choice, (batch, choices); zero beyond ``noisy`` rows."""
        if noise is None:
            return None
        count = sum(len(decision.choices) for decision in self.space.decisions)
        uniform = torch.rand(batch, count, generator=noise)
        gumbel = -torch.log(-torch.log(uniform.clip(1e-9, 1 - 1e-7)))
        if noisy is not None:
            gumbel[noisy:] = 0
        return gumbel

    def relaxed(self, policies: dict[str, Tensor], row: int = 0) -> Relaxed:
        """The relaxed arch of one budget of a batch."""
        return Relaxed(self.space, {name: policy[row] for name, policy in policies.items()})
