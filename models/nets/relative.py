"""Relative position of ViTs (``models.spaces.vit``), written two ways that answer alike. Torch.

A pair of patches has a vector: the sum of an entry of a table for their distance in rows and of one
for that in columns. Entry 0 of both is for pairs with the class token. Keys and values have two
tables of their own; queries meet the keys' vectors in the logits, attention gathers the values'.

``PairwisePositions`` is AutoFormer's: a vector for every pair, two products with all of them. It is
what the published FLOPs count, so it is what is trained, and what torch counts.

``GridPositions`` is what is deployed. Patches lie on a grid, so all queries in one row of it share
the entries of the row table, one for each row that a key can be in; columns likewise. A query meets
``2 * (grid + 1)`` vectors instead of ``grid ** 2 + 1``, and no vector of a pair is ever made: for
14 x 14 patches and heads of 64, a layer's vectors take 0.2 MB instead of 20.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nets.elastic import AbstractNet
from models.spaces.vit import RELATIVE_TABLES


def line_entries(grid: int, reach: int) -> Tensor:
    """The entry for each pair of rows, or of columns: (grid, grid), distances up to ``reach``."""
    line = torch.arange(grid)
    return (line - line[:, None]).clamp(-reach, reach) + reach + 1


class PairIndex(nn.Module):
    """Which entry of the row and of the column table each pair of tokens has: (tokens, tokens)."""

    def __init__(self, grid: int, reach: int) -> None:
        super().__init__()
        entries, place = line_entries(grid, reach), torch.arange(grid * grid)
        for axis, line in (("rows", place // grid), ("columns", place % grid)):
            pairs = F.pad(entries[line[:, None], line], (1, 0, 1, 0))
            self.register_buffer(axis, pairs, persistent=False)


class GridIndex(nn.Module):
    """How the entries that a query meets belong to keys.

    They stand side by side, ``grid + 1`` for rows and as many for columns, the last of each for the
    class token. ``entries``: which those are, for each row (or column) of queries. ``to_keys``:
    zeros and ones, (entries, tokens). ``to_entries``: the way back, (tokens, entries).
    """

    def __init__(self, grid: int, reach: int) -> None:
        super().__init__()
        self.grid = grid
        line, place = torch.arange(grid)[:, None], torch.arange(grid * grid)
        nowhere = torch.zeros(1, grid * grid)
        patches = (line == place // grid, nowhere, line == place % grid, nowhere)
        to_keys = F.pad(torch.cat(patches), (1, 0))
        to_entries = to_keys.T.clone()
        of_class = [grid, 2 * grid + 1]
        to_keys[of_class, 0] = 1
        # What attends to the class token gets its vector. As weights sum to 1, that is: everybody
        # gets it, less what attends to patches. So the class token's own query, all of whose pairs
        # have that vector, is not a case of its own.
        to_entries[1:, of_class] = -1
        entries = F.pad(line_entries(grid, reach), (0, 1))
        self.register_buffer("entries", entries, persistent=False)
        self.register_buffer("to_keys", to_keys, persistent=False)
        self.register_buffer("to_entries", to_entries, persistent=False)


class RelativePosition(nn.Module, ABC):
    """The four tables, each (2 * reach + 2, head width), and what they add to attention."""

    def __init__(self, net: AbstractNet, name: str, index: nn.Module) -> None:
        super().__init__()
        self.index = index
        for table in RELATIVE_TABLES:
            parameter = net.parameter_for(f"{name}.{table}")
            nn.init.trunc_normal_(parameter, std=0.02)
            self.register_parameter(table, parameter)

    def table(self, name: str) -> Tensor:
        """A table as it is: ``functional_call`` puts plain tensors in the place of parameters."""
        return getattr(self, name)

    @abstractmethod
    def logits(self, query: Tensor) -> Tensor:
        """(batch, heads, tokens, head width) -> what is added to (batch, heads, tokens, tokens).

        Up to a constant for each query, which a softmax does not see.
        """

    @abstractmethod
    def values(self, weights: Tensor) -> Tensor:
        """Weights (batch, heads, tokens, tokens) -> added to (batch, heads, tokens, head width).

        The weights of a query sum to 1.
        """


class PairwisePositions(RelativePosition):
    """One vector for each pair of tokens; ``index`` is a ``PairIndex``."""

    def logits(self, query: Tensor) -> Tensor:
        batch, heads, tokens, width = query.shape
        # for each query position one product, of all its heads with the pairs' vectors
        by_token = query.permute(2, 0, 1, 3).reshape(tokens, batch * heads, width)
        relative = by_token @ self._vectors("key").transpose(-2, -1)
        return relative.reshape(tokens, batch, heads, tokens).permute(1, 2, 0, 3)

    def values(self, weights: Tensor) -> Tensor:
        batch, heads, tokens, _ = weights.shape
        by_token = weights.permute(2, 0, 1, 3).reshape(tokens, batch * heads, tokens)
        relative = by_token @ self._vectors("value")
        return relative.reshape(tokens, batch, heads, -1).permute(1, 2, 0, 3)

    def _vectors(self, part: str) -> Tensor:
        """(tokens, tokens, head width)."""
        by_row, by_column = (
            F.embedding(self.index.get_buffer(axis), self.table(f"{part}_{axis}"))
            for axis in ("rows", "columns")
        )
        return by_row + by_column


class GridPositions(RelativePosition):
    """The same sums, by rows and by columns; ``index`` is a ``GridIndex``.

    Reshapes leave the number of heads to be inferred: see ``Attention``.
    """

    def logits(self, query: Tensor) -> Tensor:
        grid = self._grid
        batch, width = query.shape[0], query.shape[-1]
        patches = query[:, :, 1:].contiguous().view(batch, -1, grid, grid, width)
        by_row = patches @ self._lines("key_rows").transpose(1, 2)
        by_column = patches.transpose(2, 3) @ self._lines("key_columns").transpose(1, 2)
        products = torch.cat((by_row, by_column.transpose(2, 3)), -1)
        products = products.view(batch, -1, grid * grid, 2 * grid + 2)
        # the class token's own query would add the same to every key, so it adds nothing
        return F.pad(products, (0, 0, 1, 0)) @ self.index.get_buffer("to_keys")

    def values(self, weights: Tensor) -> Tensor:
        grid = self._grid
        batch = weights.shape[0]
        shares = (weights @ self.index.get_buffer("to_entries"))[:, :, 1:]
        shares = shares.contiguous().view(batch, -1, grid, grid, 2 * grid + 2)
        by_row = shares[..., : grid + 1] @ self._lines("value_rows")
        by_column = shares[..., grid + 1 :].transpose(2, 3) @ self._lines("value_columns")
        gathered = (by_row + by_column.transpose(2, 3)).contiguous()
        gathered = gathered.view(batch, -1, grid * grid, gathered.shape[-1])
        of_class = self.table("value_rows")[0] + self.table("value_columns")[0]
        return F.pad(gathered, (0, 0, 1, 0)) + of_class

    @property
    def _grid(self) -> int:
        assert isinstance(self.index, GridIndex)
        return self.index.grid

    def _lines(self, table: str) -> Tensor:
        """What the queries of each row (column) meet: (grid, grid + 1, head width)."""
        return F.embedding(self.index.get_buffer("entries"), self.table(table))
