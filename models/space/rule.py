"""CostRule: a cost of every arch as a sum of small tables, exact for many archs at once.

Each part of a network costs what a few decisions make it cost, so the cost of an arch is a sum of
integer tables, one axis a decision::

    cost(arch) = sum_t table_t[choice_i, choice_j, ...]

With one-hot policies instead of choices the same sum, contracted, is differentiable and exact
(``models.space.relaxed``). Costs are whole numbers (FLOPs, bytes, nanoseconds), so that whether an
arch is within a budget does not depend on the order of a sum. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.space.arch import Choice
from models.space.sizes import Block, Decision

# What does not fit into a cache takes longer than the work on it.
_ARCHS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Term:
    """A cost table: int64, one axis for each decision in ``decisions`` (positions in the space)."""

    decisions: tuple[int, ...]
    table: np.ndarray


@dataclass(frozen=True, eq=False)
class CostRule:
    """What every arch of a space costs."""

    terms: tuple[Term, ...]
    decisions: tuple[Decision, ...]

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Costs of many archs at once: (archs, decisions) positions of choices -> int64 (archs,).

        What dropped blocks choose does not matter.
        """
        moves = self._moves
        total = np.empty(len(indices), np.int64)
        for start in range(0, len(indices), _ARCHS_AT_ONCE):
            some = slice(start, start + _ARCHS_AT_ONCE)
            # Small whole numbers, so this is exact; BLAS multiplies no integers.
            cells = (moves.float_strides @ indices[some].T.astype(np.float32)).astype(np.int64)
            cells += moves.first[:, None]
            total[some] = moves.tables[cells].sum(axis=0)
        return total

    def costs_of_choices(self, indices: np.ndarray) -> np.ndarray:
        """What each choice of a decision costs beside the others of an arch, for many archs.

        (archs, decisions) positions of choices -> int64 (archs, choices), all decisions side by
        side: the sum of the terms that depend on the decision, with this one choice changed.
        Differences of these are differences of costs; they are the gradient of the relaxed rule.
        """
        cells = indices @ self._moves.strides + self._moves.first
        moved = cells[:, self._moves.term] - indices[:, self._moves.decision] * self._moves.stride
        values = self._moves.tables[moved + self._moves.offset]
        return np.add.reduceat(values, self._moves.starts, axis=1)

    @cached_property
    def _moves(self) -> _Moves:
        assert all(len(table) < 2**24 for table, _, _ in self._flat), "cells are exact as float32"
        # the last table is of decisions that cost nothing
        flat = [*self._flat, (np.zeros(1, np.int64), (), ())]
        first = np.cumsum([0, *(len(table) for table, _, _ in flat)])
        strides = np.zeros((len(self.decisions), len(flat)), np.int64)
        for place, (_, decisions, steps) in enumerate(flat):
            strides[list(decisions), place] = steps
        rows: list[tuple[int, int, int, int]] = []
        starts: list[int] = []
        for d, decision in enumerate(self.decisions):
            own = [place for place, (_, decisions, _) in enumerate(flat) if d in decisions]
            for choice in range(len(decision.choices)):
                starts.append(len(rows))
                rows += [
                    (t, d, int(strides[d, t]), choice * int(strides[d, t]))
                    for t in own or [len(flat) - 1]
                ]
        term, by_decision, stride, offset = np.array(rows).T
        tables = np.concatenate([table for table, _, _ in flat])
        return _Moves(
            tables,
            first[:-1],
            strides,
            np.ascontiguousarray(strides.T, np.float32),
            term,
            by_decision,
            stride,
            offset,
            np.array(starts),
        )

    @cached_property
    def _flat(self) -> list[tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]]:
        return [
            (
                np.ascontiguousarray(term.table).ravel(),
                term.decisions,
                tuple(int(np.prod(term.table.shape[i + 1 :])) for i in range(term.table.ndim)),
            )
            for term in self.terms
        ]


@dataclass(frozen=True, eq=False)
class _Moves:
    """All tables in one array, and every (term, choice of a decision in it), by choice.

    An arch's cell of a term is ``first`` + positions x ``strides``; with another choice it lies at
    that - position x ``stride`` + ``offset``. ``starts``: where the pairs of each choice begin;
    ``float_strides``: the strides, transposed.
    """

    tables: np.ndarray
    first: np.ndarray
    strides: np.ndarray
    float_strides: np.ndarray
    term: np.ndarray
    decision: np.ndarray
    stride: np.ndarray
    offset: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a network and its cost.

    ``decisions``: the names of those that it depends on. ``cost``: from their choices to a whole
    number. ``block``: it costs nothing where that is dropped.
    """

    decisions: tuple[str, ...]
    cost: Callable[[Mapping[str, Choice]], int]
    block: Block | None = None


def cost_rule(decisions: tuple[Decision, ...], parts: Iterable[Part]) -> CostRule:
    """Tabulate the costs of parts, merged so that each set of decisions is looked up once."""
    position = {decision.name: i for i, decision in enumerate(decisions)}
    tables: dict[tuple[int, ...], np.ndarray] = {}
    for part in parts:
        names = {*part.decisions, *([] if part.block is None else [part.block.depth])}
        axes = tuple(sorted(position[name] for name in names))
        own = [decisions[i] for i in axes]
        table = np.zeros([len(d.choices) for d in own], np.int64)
        for index in itertools.product(*(range(n) for n in table.shape)):
            arch = {d.name: d.choices[i] for d, i in zip(own, index, strict=True)}
            if part.block is None or part.block.present(arch):
                table[index] = part.cost(arch)
        tables[axes] = tables[axes] + table if axes in tables else table
    return CostRule(_merged(tables), decisions)


def _merged(tables: dict[tuple[int, ...], np.ndarray]) -> tuple[Term, ...]:
    """Add every table whose decisions are among those of a larger one into that one."""
    kept: dict[tuple[int, ...], np.ndarray] = {}
    for axes in sorted(tables, key=len, reverse=True):
        home = next((other for other in kept if set(axes) <= set(other)), None)
        if home is None:
            kept[axes] = tables[axes]
        else:
            shape = [n if a in axes else 1 for a, n in zip(home, kept[home].shape, strict=True)]
            kept[home] = kept[home] + tables[axes].reshape(shape)
    assert all(kept), "a space without decisions has no budget to keep"
    return tuple(Term(axes, table) for axes, table in kept.items())
