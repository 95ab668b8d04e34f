"""GeneratorPolicy: the trained generator in numpy, as the server runs it. No torch.

The equations are those of ``models.generator``; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.space import SearchSpace
from models.tail import tail_of

LOGIT_BOUND = 6.0


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # exp would overflow


@dataclass(frozen=True, eq=False)
class GeneratorPolicy:
    """Budget -> log-probability of every choice, given the most probable choices before it."""

    space: SearchSpace
    weights: Mapping[str, np.ndarray]

    def log_probabilities(self, budget_flops: float) -> list[np.ndarray]:
        """One float32 array of shape (choices,) per decision, in the space's order."""
        return [rows[0] for rows in self.log_probabilities_of([budget_flops])]

    def log_probabilities_of(self, budgets_flops: Sequence[float]) -> list[np.ndarray]:
        """Many budgets in one call: (budgets, choices) per decision, in the space's order."""
        w = self.weights
        low, high = self.space.min_flops, self.space.max_flops
        budgets = np.asarray(budgets_flops, np.float64)
        position = ((budgets - low) / (high - low)).astype(np.float32)
        frequencies = np.arange(w["encode.weight"].shape[1])
        features = np.cos(np.pi * position[:, None] * frequencies).astype(np.float32)
        budget = features @ w["encode.weight"].T + w["encode.bias"]
        from_budget = budget @ w["cell.weight_ih"].T + (w["cell.bias_ih"] + w["cell.bias_hh"])
        from_hidden = w["cell.weight_hh"].T
        entry = from_budget + w["cell.weight_ih"] @ w["start"]
        tail = tail_of(self.space)
        hidden = cell = np.zeros_like(budget)
        answer = [np.zeros((len(budgets), 1), np.float32)] * len(self.space.decisions)
        indices = np.zeros((len(budgets), len(self.space.decisions)), np.int64)
        gaps: np.ndarray | None = None
        for place in tail.order:
            decision = self.space.decisions[place]
            count = len(decision.choices)
            if count == 1:
                continue
            gates = entry + hidden @ from_hidden
            enter, forget, update, leave = np.split(gates, 4, axis=1)
            cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(update)
            hidden = _sigmoid(leave) * np.tanh(cell)
            head = f"heads.{decision.kind}"
            logits = hidden @ w[f"{head}.weight"][:count].T + w[f"{head}.bias"][:count]
            logits = LOGIT_BOUND * np.tanh(logits / LOGIT_BOUND)
            if place in tail.decisions:
                if gaps is None:
                    gaps = tail.gaps(indices, budgets)
                logits = logits - tail.toll(gaps)
            logits = logits - logits.max(axis=1, keepdims=True)
            answer[place] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            chosen = indices[:, place] = logits.argmax(axis=1)
            if gaps is not None:
                gaps = tail.after(gaps, chosen)
            embeddings = w[f"embeddings.{decision.kind}.weight"]
            entry = from_budget + embeddings.T[chosen] @ w["cell.weight_ih"].T
        return answer
