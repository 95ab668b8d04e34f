"""GeneratorPolicy: the trained generator in numpy, as the server runs it. No torch.

The equations are those of ``models.generator``; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.space import SearchSpace

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
        w = self.weights
        low, high = self.space.min_flops, self.space.max_flops
        position = np.float32((budget_flops - low) / (high - low))
        features = np.cos(np.pi * position * np.arange(w["encode.weight"].shape[1]))
        budget = w["encode.weight"] @ features.astype(np.float32) + w["encode.bias"]
        before = w["start"]
        bias = w["cell.bias_ih"] + w["cell.bias_hh"]
        hidden = cell = np.zeros_like(budget)
        answer = []
        for decision in self.space.decisions:
            count = len(decision.choices)
            if count == 1:
                answer.append(np.zeros(1, np.float32))
                continue
            gates = w["cell.weight_ih"] @ (budget + before) + w["cell.weight_hh"] @ hidden + bias
            entry, forget, update, output = np.split(gates, 4)
            cell = _sigmoid(forget) * cell + _sigmoid(entry) * np.tanh(update)
            hidden = _sigmoid(output) * np.tanh(cell)
            head = f"heads.{decision.kind}"
            logits = w[f"{head}.weight"][:count] @ hidden + w[f"{head}.bias"][:count]
            logits = LOGIT_BOUND * np.tanh(logits / LOGIT_BOUND)
            logits = logits - logits.max()
            answer.append(logits - np.log(np.exp(logits).sum()))
            before = w[f"embeddings.{decision.kind}.weight"][:, int(logits.argmax())]
        return answer
