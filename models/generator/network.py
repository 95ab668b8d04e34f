"""The architecture generator (AG): an LSTM from budgets to a policy for every decision. Uses torch.

Paper, section 3.3: LSTM with 64 hidden units, one linear head per kind of decision, straight-
through Gumbel one-hots, decided in sequence. The paper leaves the input open; here the budget,
scaled to [0, 1] over the space's range, enters through cosine features at every step, next to the
embedding of the choice before. The last decisions know what is left of the budget
(``models.generator.tail``).

It decides for a batch of budgets at once, on the CPU. The equations and their gradient are in
``models.generator.numpy_pass``, in numpy; ``models.generator.policy`` runs the same.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.generator.numpy_pass import GeneratorPass
from models.space.relaxed import Relaxed
from models.space.search_space import SearchSpace

HIDDEN = 64
FREQUENCIES = 16


def one_numpy_thread() -> AbstractContextManager[Any]:
    """Around training: the generator's matrices are so small that a second thread only costs.

    On two cores a step took three times as long. Does not concern torch's own threads.
    """
    return threadpool_limits(1, user_api="blas")


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
        names, weights = zip(*self.named_parameters(), strict=True)
        gumbel = self._gumbel(len(budgets), noise, noisy)
        how = _How(self.space, names, temperature, gumbel)
        policies, log_probabilities = _Decide.apply(how, budgets.double(), *weights)
        return self._by_decision(policies), self._by_decision(log_probabilities)

    def _by_decision(self, side_by_side: Tensor) -> dict[str, Tensor]:
        counts = [len(decision.choices) for decision in self.space.decisions]
        names = [decision.name for decision in self.space.decisions]
        return dict(zip(names, side_by_side.split(counts, dim=1), strict=True))

    def _gumbel(
        self, batch: int, noise: torch.Generator | None, noisy: int | None
    ) -> np.ndarray | None:
        """Gumbel noise for every choice, (batch, choices); zero beyond ``noisy`` rows."""
        if noise is None:
            return None
        count = sum(len(decision.choices) for decision in self.space.decisions)
        uniform = torch.rand(batch, count, generator=noise).numpy()
        gumbel = -np.log(-np.log(uniform.clip(1e-9, 1 - 1e-7)))
        if noisy is not None:
            gumbel[noisy:] = 0
        return gumbel

    def relaxed(self, policies: dict[str, Tensor], row: int = 0) -> Relaxed:
        """The relaxed arch of one budget of a batch."""
        return Relaxed(self.space, {name: policy[row] for name, policy in policies.items()})


@dataclass(frozen=True)
class _How:
    """What a pass needs beside tensors. ``names``: of the weights, in the order they are given."""

    space: SearchSpace
    names: tuple[str, ...]
    temperature: float
    gumbel: np.ndarray | None


class _Decide(torch.autograd.Function):
    """A ``GeneratorPass`` as one operation of autograd."""

    # torch types it as taking anything; each function takes what it takes
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, how: _How, budgets: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        arrays = {n: w.detach().numpy() for n, w in zip(how.names, weights, strict=True)}
        done = GeneratorPass(
            how.space,
            arrays,
            budgets.detach().numpy(),
            temperature=how.temperature,
            gumbel=how.gumbel,
        )
        ctx.save_for_backward(*weights)
        ctx.names, ctx.done = how.names, done
        return torch.from_numpy(done.policies), torch.from_numpy(done.log_probabilities)

    # (once_differentiable loses the name of its first argument)
    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # refuses weights that were changed since: the pass holds them too
        found, to_budgets = ctx.done.gradients(*(gradient.numpy() for gradient in grad_outputs))
        to_weights = (
            torch.from_numpy(found[name]) if name in found else None for name in ctx.names
        )
        return None, torch.from_numpy(to_budgets), *to_weights
