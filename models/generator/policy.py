"""GeneratorPolicy: the trained generator as the server runs it, in numpy. No torch.

The equations are those of ``models.generator.network``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.costs.cost import Cost
from models.generator.tail import tail_of
from models.space.search_space import SearchSpace

HIDDEN, FREQUENCIES = 64, 16
LOGIT_BOUND = 6.0
"""Logits are squashed into +-6, so that no choice ever becomes unreachable (ENAS does the same)."""


def choices_of_kinds(space: SearchSpace) -> dict[str, int]:
    """The most choices that a decision of each kind has."""
    kinds: dict[str, int] = {}
    for decision in space.decisions:
        kinds[decision.kind] = max(kinds.get(decision.kind, 0), len(decision.choices))
    return kinds


def generator_shapes(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    """Of the weights of a space's generator, by name."""
    gates = 4 * HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "encode.weight": (HIDDEN, FREQUENCIES),
        "encode.bias": (HIDDEN,),
        "cell.weight_ih": (gates, HIDDEN),
        "cell.weight_hh": (gates, HIDDEN),
        "cell.bias_ih": (gates,),
        "cell.bias_hh": (gates,),
        "start": (HIDDEN,),
    }
    for kind, count in choices_of_kinds(space).items():
        shapes[f"heads.{kind}.weight"] = (count, HIDDEN)
        shapes[f"heads.{kind}.bias"] = (count,)
        shapes[f"embeddings.{kind}.weight"] = (HIDDEN, count)
    return shapes


def budget_features(position: np.ndarray, count: int) -> np.ndarray:
    """Budgets scaled to [0, 1], (batch,) -> cosine features, float32 (batch, count)."""
    return np.cos(math.pi * position[:, None] * np.arange(count)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class PolicyState:
    """What the LSTM knows of some prefixes of archs: float32 arrays, a row for each."""

    budget: np.ndarray
    entry: np.ndarray
    hidden: np.ndarray
    cell: np.ndarray


@dataclass(frozen=True, eq=False)
class GeneratorPolicy:
    """Budget -> log-probability of every choice, given the choices before it.

    Budgets are in the whole numbers of ``cost``. weights: float32 by name, as in the state dict of
    ``ArchitectureGenerator``.
    """

    cost: Cost
    weights: Mapping[str, np.ndarray]

    @property
    def space(self) -> SearchSpace:
        return self.cost.space

    def begin(self, budgets: Sequence[float] | np.ndarray) -> PolicyState:
        """Before the first decision; a row for each budget."""
        cost, w = self.cost, self.weights
        position = (np.asarray(budgets, np.float64) - cost.min) / (cost.max - cost.min)
        features = budget_features(position, w["encode.weight"].shape[1])
        budget = features @ w["encode.weight"].T + w["encode.bias"]
        nothing = np.zeros_like(budget)
        return PolicyState(budget, budget + w["start"], nothing, nothing)

    def step(self, state: PolicyState, place: int) -> tuple[np.ndarray, PolicyState]:
        """Logits of a decision's choices, (rows, choices), and what is known behind it."""
        w, decision = self.weights, self.space.decisions[place]
        kind, count = decision.kind, len(decision.choices)
        gates = state.entry @ w["cell.weight_ih"].T + state.hidden @ w["cell.weight_hh"].T
        gates += w["cell.bias_ih"] + w["cell.bias_hh"]
        enter, forget, update, leave = np.split(gates, 4, axis=1)
        cell = _sigmoid(forget) * state.cell + _sigmoid(enter) * np.tanh(update)
        hidden = _sigmoid(leave) * np.tanh(cell)
        raw = hidden @ w[f"heads.{kind}.weight"][:count].T + w[f"heads.{kind}.bias"][:count]
        known = PolicyState(state.budget, state.entry, hidden, cell)
        return LOGIT_BOUND * np.tanh(raw / LOGIT_BOUND), known

    def choose(
        self, state: PolicyState, place: int, rows: np.ndarray, choices: np.ndarray
    ) -> PolicyState:
        """Some rows of a state, each with a choice made; a row may go on with several."""
        kind = self.space.decisions[place].kind
        budget = state.budget[rows]
        entry = budget + self.weights[f"embeddings.{kind}.weight"].T[choices]
        return PolicyState(budget, entry, state.hidden[rows], state.cell[rows])

    def log_probabilities_of(self, asked: Sequence[float]) -> list[np.ndarray]:
        """Given the most probable choices before: (budgets, choices) per decision, in order."""
        space, tail = self.space, tail_of(self.cost)
        budgets = np.asarray(asked, np.float64)
        every = np.arange(len(budgets))
        log_probabilities = [np.zeros((len(budgets), 1), np.float32)] * len(space.decisions)
        indices = np.zeros((len(budgets), len(space.decisions)), np.int64)
        gaps: np.ndarray | None = None
        state = self.begin(budgets)
        for place in tail.decided:
            logits, state = self.step(state, place)
            if place in tail.decisions:
                if gaps is None:
                    gaps = tail.gaps(indices, budgets)
                logits -= tail.toll(gaps)
            log_probabilities[place] = log_softmax(logits)
            indices[:, place] = logits.argmax(axis=1)
            if gaps is not None:
                gaps = tail.after(gaps, indices[:, place])
            state = self.choose(state, place, every, indices[:, place])
        return log_probabilities


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2
