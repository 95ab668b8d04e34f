"""GeneratorPolicy: the trained generator as the server runs it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from models.generator.numpy_pass import GeneratorPass, Weights
from models.space.search_space import SearchSpace


@dataclass(frozen=True, eq=False)
class GeneratorPolicy:
    """Budget -> log-probability of every choice, given the most probable choices before it."""

    space: SearchSpace
    weights: Weights

    def log_probabilities(self, budget_flops: float) -> list[np.ndarray]:
        """One float32 array of shape (choices,) per decision, in the space's order."""
        return [rows[0] for rows in self.log_probabilities_of([budget_flops])]

    def log_probabilities_of(self, budgets_flops: Sequence[float]) -> list[np.ndarray]:
        """Many budgets in one call: (budgets, choices) per decision, in the space's order."""
        budgets = np.asarray(budgets_flops, np.float64)
        done = GeneratorPass(self.space, self.weights, budgets)
        ends = [*accumulate(len(decision.choices) for decision in self.space.decisions)]
        return np.split(done.log_probabilities, ends[:-1], axis=1)
