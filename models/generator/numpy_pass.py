"""GeneratorPass: the generator's pass over all decisions, and its gradient, in numpy. No torch.

``network.py`` trains through it and ``policy.py`` answers with it, so what is trained is
what is served. The gradient is written out because a step of this LSTM is short and made of small
arrays: in torch nearly all of its time went into calling some 700 operations and recording them.
What does not depend on the choices before is computed once, for all decisions together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from models.generator.tail import tail_of
from models.space.search_space import SearchSpace

LOGIT_BOUND = 6.0
"""Logits are squashed into +-6, so that no choice ever becomes unreachable (ENAS does the same)."""

Weights = Mapping[str, np.ndarray]
"""float32 by name, as in the state dict of ``ArchitectureGenerator``."""


def budget_features(position: np.ndarray, count: int) -> np.ndarray:
    """Budgets scaled to [0, 1], (batch,) -> cosine features, float32 (batch, count)."""
    return np.cos(math.pi * position[:, None] * np.arange(count)).astype(np.float32)


@dataclass(frozen=True)
class _Step:
    """One decision: its place in the space, its number of choices, and where they lie.

    ``column``: of the first choice, where all decisions stand side by side; ``head``: of the
    first choice of its kind, where all kinds do.
    """

    place: int
    choices: int
    column: int
    head: int
    in_tail: bool


@dataclass(frozen=True, eq=False)
class _Layout:
    """Of a space: the decisions with a choice, in the order of generation, and their kinds.

    ``kinds``: name -> slice of its choices among those of all kinds. ``columns``: of the choices of
    all steps, in arrays (batch, choices) with all decisions side by side; ``cells``: the same in
    arrays (batch, steps x width), where every step has ``width``.
    """

    steps: tuple[_Step, ...]
    kinds: dict[str, slice]
    width: int
    total: int
    columns: np.ndarray
    cells: np.ndarray


@lru_cache(maxsize=64)
def _layout(space: SearchSpace) -> _Layout:
    counts = [len(decision.choices) for decision in space.decisions]
    starts = np.cumsum([0, *counts])
    tail = tail_of(space)
    decided = [place for place in tail.order if counts[place] > 1]
    most: dict[str, int] = {}
    for place in decided:
        kind = space.decisions[place].kind
        most[kind] = max(most.get(kind, 0), counts[place])
    ends = np.cumsum([*most.values()]).tolist()
    kinds = {
        kind: slice(end - count, end) for (kind, count), end in zip(most.items(), ends, strict=True)
    }
    steps = tuple(
        _Step(
            place,
            counts[place],
            int(starts[place]),
            kinds[space.decisions[place].kind].start,
            place in tail.decisions,
        )
        for place in decided
    )
    width = max(step.choices for step in steps)
    return _Layout(
        steps,
        kinds,
        width,
        int(starts[-1]),
        np.concatenate([step.column + np.arange(step.choices) for step in steps]),
        np.concatenate([k * width + np.arange(step.choices) for k, step in enumerate(steps)]),
    )


class GeneratorPass:
    """From budgets to choices: run when it is made.

    budgets: FLOPs, float64 (batch,). gumbel: noise on the logits, float32 (batch, choices), or None
    for the most probable choices. ``policies``: one-hot, ``log_probabilities``: of every choice
    given those before; both float32 (batch, choices), all decisions side by side in the space's
    order. ``indices``: int64 (batch, decisions).
    """

    def __init__(
        self,
        space: SearchSpace,
        weights: Weights,
        budgets: np.ndarray,
        *,
        temperature: float = 1.0,
        gumbel: np.ndarray | None = None,
    ) -> None:
        self._layout, self._weights, self._temperature = _layout(space), weights, temperature
        self._range = space.max_flops - space.min_flops
        self._position = ((budgets - space.min_flops) / self._range).astype(np.float32)
        tail, steps, kinds, batch = (
            tail_of(space),
            self._layout.steps,
            self._layout.kinds,
            len(budgets),
        )
        w = weights
        units = w["start"].shape[0]
        # of the gates: enter, forget, update, leave. sigmoid(x) = (1 + tanh(x / 2)) / 2, so that
        # one tanh is for all; the update is a tanh itself
        self._parts = [slice(i * units, (i + 1) * units) for i in range(4)]
        self._scale = np.full(4 * units, 0.5, np.float32)
        self._scale[self._parts[2]] = 1
        self._offset = 1 - self._scale
        self._features = budget_features(self._position, w["encode.weight"].shape[1])
        self._budget = self._features @ w["encode.weight"].T + w["encode.bias"]
        bias = w["cell.bias_ih"] + w["cell.bias_hh"]
        from_budget = (self._budget @ w["cell.weight_ih"].T + bias) * self._scale
        from_hidden = w["cell.weight_hh"].T * self._scale
        self._heads = np.concatenate(
            [w[f"heads.{k}.weight"][: s.stop - s.start] for k, s in kinds.items()]
        )
        head_bias = np.concatenate(
            [w[f"heads.{k}.bias"][: s.stop - s.start] for k, s in kinds.items()]
        )
        self._embeddings = np.concatenate(
            [w[f"embeddings.{k}.weight"][:, : s.stop - s.start] for k, s in kinds.items()], axis=1
        )
        self._from_choice = self._embeddings.T @ w["cell.weight_ih"].T
        from_choice = self._from_choice * self._scale
        heads, head_bias = (
            self._heads.T / np.float32(LOGIT_BOUND),
            head_bias / np.float32(LOGIT_BOUND),
        )

        # of every step: tanh of the gates and the logits; hidden states from before the first on
        shape = (len(steps), batch)
        self._tanh = np.empty((*shape, 4 * units), np.float32)
        self._cells = np.zeros((len(steps) + 1, batch, units), np.float32)
        self._hidden = np.zeros_like(self._cells)
        self._squashed = np.zeros((*shape, self._layout.width), np.float32)
        self._logits = np.full_like(self._squashed, -np.inf)
        self.indices = np.zeros((batch, len(space.decisions)), np.int64)
        entry = from_budget + (w["cell.weight_ih"] @ w["start"]) * self._scale
        gaps: np.ndarray | None = None
        for k, step in enumerate(steps):
            tanh, cell = self._tanh[k], self._cells[k + 1]
            np.matmul(self._hidden[k], from_hidden, out=tanh)
            tanh += entry
            np.tanh(tanh, out=tanh)
            enter, forget, update, leave = self._gates(k)
            np.multiply(forget, self._cells[k], out=cell)
            cell += enter * update
            np.multiply(leave, np.tanh(cell), out=self._hidden[k + 1])
            own = slice(step.head, step.head + step.choices)
            squashed = self._hidden[k + 1] @ heads[:, own]
            squashed += head_bias[own]
            np.tanh(squashed, out=squashed)
            self._squashed[k, :, : step.choices] = squashed
            logits = np.float32(LOGIT_BOUND) * squashed
            if step.in_tail:
                if gaps is None:
                    gaps = tail.gaps(self.indices, budgets)
                logits -= tail.toll(gaps)
            self._logits[k, :, : step.choices] = logits
            if gumbel is not None:
                logits += gumbel[:, step.column : step.column + step.choices]
            chosen = self.indices[:, step.place] = logits.argmax(axis=1)
            if gaps is not None:
                gaps = tail.after(gaps, chosen)
            entry = from_budget + from_choice[step.head + chosen]

        top = self._logits.max(axis=2, keepdims=True)
        self._log_p = self._logits - top
        self._log_p -= np.log(np.exp(self._log_p).sum(axis=2, keepdims=True))
        self._gumbel = None if gumbel is None else self._by_step(gumbel)
        self._chosen = self.indices.T[[step.place for step in steps]][..., None]
        one_hots = np.zeros_like(self._logits)
        np.put_along_axis(one_hots, self._chosen, 1, axis=2)
        self.policies = np.ones((batch, self._layout.total), np.float32)
        self.log_probabilities = np.zeros_like(self.policies)
        for flat, padded in ((self.policies, one_hots), (self.log_probabilities, self._log_p)):
            side_by_side = padded.transpose(1, 0, 2).reshape(batch, -1)
            flat[:, self._layout.columns] = side_by_side[:, self._layout.cells]

    def _gates(self, k: int) -> list[np.ndarray]:
        """Enter, forget, update, leave of a step: (batch, units) each."""
        gates = self._tanh[k] * self._scale
        gates += self._offset
        return [gates[:, part] for part in self._parts]

    def gradients(
        self, to_policies: np.ndarray, to_log_probabilities: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Of a scalar, from its gradients to both outputs: to every weight, and to the budgets.

        Straight-through: a policy passes on what its softmax at the temperature would. The toll of
        the tail is taken as it is. Budgets: float64 (batch,).
        """
        steps, parts, count = self._layout.steps, self._parts, len(self._heads)
        noisy = self._logits if self._gumbel is None else self._logits + self._gumbel
        soft = noisy - noisy.max(axis=2, keepdims=True)
        soft /= np.float32(self._temperature)
        np.exp(soft, out=soft)
        soft /= soft.sum(axis=2, keepdims=True)
        over_t = soft / np.float32(self._temperature)
        to_policy = self._by_step(to_policies)
        to_log_p = self._by_step(to_log_probabilities)
        to_logits = to_log_p - np.exp(self._log_p) * to_log_p.sum(axis=2, keepdims=True)
        squash_slope = 1 - self._squashed**2
        scale_squared = self._scale**2
        # what the gates of a step tell the step before: its policy, then its hidden state
        back = np.concatenate([self._from_choice.T, self._weights["cell.weight_hh"]], axis=1)
        to_gates = np.empty_like(self._tanh)
        to_raw = np.zeros((*self._logits.shape[:2], count), np.float32)
        to_hidden = to_cell = np.float32(0)
        for k in reversed(range(len(steps))):
            step = steps[k]
            own = slice(step.head, step.head + step.choices)
            policy = to_policy[k, :, : step.choices]
            if k + 1 < len(steps):
                told = to_gates[k + 1] @ back
                policy = policy + told[:, own]
                to_hidden = told[:, count:]
            centred = policy - (soft[k, :, : step.choices] * policy).sum(axis=1, keepdims=True)
            raw = over_t[k, :, : step.choices] * centred
            raw += to_logits[k, :, : step.choices]
            raw *= squash_slope[k, :, : step.choices]
            to_raw[k, :, own] = raw
            to_hidden = raw @ self._heads[own] + to_hidden
            enter, forget, update, leave = self._gates(k)
            tanh_cell = np.tanh(self._cells[k + 1])
            to_cell = to_cell + to_hidden * leave * (1 - tanh_cell * tanh_cell)
            here = to_gates[k]
            np.multiply(to_cell, update, out=here[:, parts[0]])
            np.multiply(to_cell, self._cells[k], out=here[:, parts[1]])
            np.multiply(to_cell, enter, out=here[:, parts[2]])
            np.multiply(to_hidden, tanh_cell, out=here[:, parts[3]])
            slope = 1 - self._tanh[k] * self._tanh[k]
            slope *= scale_squared
            here *= slope
            to_cell *= forget
        return self._to_weights(to_gates, to_raw)

    def _to_weights(
        self, to_gates: np.ndarray, to_raw: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """From the gradients to all gates (before their activation) and logits (before tanh)."""
        w, layout = self._weights, self._layout
        weight_ih = w["cell.weight_ih"]

        def rows(array: np.ndarray) -> np.ndarray:
            return array.reshape(-1, array.shape[-1])

        chosen = np.zeros_like(to_raw)
        head = np.array([step.head for step in layout.steps])[:, None, None]
        np.put_along_axis(chosen, self._chosen + head, 1, axis=2)
        told = rows(chosen[:-1]).T @ rows(to_gates[1:])
        summed, first = to_gates.sum(axis=0), to_gates[0].sum(axis=0)
        to_bias, to_budget = summed.sum(axis=0), summed @ weight_ih
        to_heads, to_head_bias = rows(to_raw).T @ rows(self._hidden[1:]), rows(to_raw).sum(axis=0)
        to_embeddings = weight_ih.T @ told.T
        found = {
            "encode.weight": to_budget.T @ self._features,
            "encode.bias": to_budget.sum(axis=0),
            "cell.weight_ih": summed.T @ self._budget
            + np.outer(first, w["start"])
            + told.T @ self._embeddings.T,
            "cell.weight_hh": rows(to_gates).T @ rows(self._hidden[:-1]),
            "cell.bias_ih": to_bias,
            "cell.bias_hh": to_bias.copy(),
            "start": weight_ih.T @ first,
        }
        for kind, own in layout.kinds.items():
            found[f"heads.{kind}.weight"] = to_heads[own]
            found[f"heads.{kind}.bias"] = to_head_bias[own]
            found[f"embeddings.{kind}.weight"] = np.ascontiguousarray(to_embeddings[:, own])
        frequency = math.pi * np.arange(self._features.shape[1])
        slope = -frequency * np.sin(self._position[:, None] * frequency)
        to_position = ((to_budget @ w["encode.weight"]) * slope).sum(axis=1)
        return found, to_position / self._range

    def _by_step(self, side_by_side: np.ndarray) -> np.ndarray:
        """(batch, choices) of all decisions -> (steps, batch, width), zero beyond a step's own."""
        batch, layout = len(side_by_side), self._layout
        padded = np.zeros((batch, len(layout.steps) * layout.width), np.float32)
        padded[:, layout.cells] = side_by_side[:, layout.columns]
        return padded.reshape(batch, len(layout.steps), layout.width).transpose(1, 0, 2)
