"""ViTNet: the forward pass of the vision transformers (``models.spaces.vit``). Uses torch.

Each decision silences what it removes once, where it is next used: width, heads and hidden units in
the weights that read them (``Masked``), and width in the sums of LayerNorm; depth on what a block
adds. A second mask in the same path would make the gradient of a silenced channel zero times zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.arch import Arch
from models.nets.elastic import AbstractNet, ElasticLinear, StatisticsRecorder, TensorStatistics
from models.nets.view import AbstractView
from models.space import SearchSpace
from models.spaces.vit import RELATIVE_TABLES, VitBlockLayout, VitLayout

Entries = tuple[Tensor, Tensor]
LAYER_NORM_EPSILON = 1e-5


class ElasticLayerNorm(nn.Module):
    """LayerNorm over the active channels of the last axis."""

    def __init__(self, net: AbstractNet, name: str) -> None:
        super().__init__()
        self.weight = net.parameter_for(f"{name}.weight")
        self.bias = net.parameter_for(f"{name}.bias")
        self._weight = net.space.weight[f"{name}.weight"]
        self._bias = net.space.weight[f"{name}.bias"]
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        """Normalized, of the shape of ``x``."""
        weight, bias = view.weight(self.weight, self._weight), view.weight(self.bias, self._bias)
        size = self._weight.shape[0]
        active = view.active(size)
        if isinstance(active, int):
            # a subnet's stream holds active channels only
            return F.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPSILON)
        mean = view.total(x, size, -1) / active
        centred = x - mean
        variance = view.total(centred.square(), size, -1) / active
        normalized = centred * torch.rsqrt(variance + LAYER_NORM_EPSILON)
        return normalized * weight + bias


class RelativePosition(nn.Module):
    """Two-dimensional relative positions: a vector of head width for each pair of tokens.

    A pair's vector is the sum of an entry of a table for the distance in rows and one for that in
    columns (``relative_entries``). Keys and values have their own two tables.
    """

    def __init__(self, net: AbstractNet, name: str) -> None:
        super().__init__()
        for table in RELATIVE_TABLES:
            parameter = net.parameter_for(f"{name}.{table}")
            nn.init.trunc_normal_(parameter, std=0.02)
            self.register_parameter(table, parameter)

    def forward(self, part: str, entries: Entries) -> Tensor:
        """The vectors of the ``key`` or the ``value`` part: (tokens, tokens, head width)."""
        rows, columns = entries
        # not get_parameter: functional_call puts plain tensors in the place of parameters
        row_table, column_table = getattr(self, f"{part}_rows"), getattr(self, f"{part}_columns")
        return F.embedding(rows, row_table) + F.embedding(columns, column_table)


def relative_entries(grid: int, reach: int) -> Entries:
    """Which entry of the row and of the column table a pair of tokens takes: (tokens, tokens) each.

    Distances are clipped to ``reach`` patches. Entry 0 is for pairs with the class token.
    """
    place = torch.arange(grid * grid)

    def entries(coordinate: Tensor) -> Tensor:
        distance = (coordinate[None] - coordinate[:, None]).clamp(-reach, reach)
        return F.pad(distance + reach + 1, (1, 0, 1, 0))

    return entries(place // grid), entries(place % grid)


class SteppedLinear(ElasticLinear):
    """A linear layer whose bias is the sum of the rows of a table (``vit_space``)."""

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = view.total(view.weight(self.bias, self._bias), self._bias.shape[0], 0)[0]
        return F.linear(x, view.weight(self.weight, self._weight), bias)


class Attention(nn.Module):
    """Attention of as many heads as its weights have rows for. (batch, tokens, width) both ways.

    Written as plain matrix products: their FLOPs are counted by torch, and every reshape leaves
    the number of heads to be inferred, so that the exported graph fits any subnet. (A ``reshape``
    of a tensor that is not contiguous would be exported with the number computed from all sizes.)
    """

    def __init__(self, net: AbstractNet, name: str, layout: VitLayout) -> None:
        super().__init__()
        self.query = ElasticLinear(net, f"{name}.query")
        self.key = ElasticLinear(net, f"{name}.key")
        linear = SteppedLinear if layout.stepped_bias else ElasticLinear
        self.value = linear(net, f"{name}.value")
        self.project = ElasticLinear(net, f"{name}.project")
        self.relative: RelativePosition | None = None
        if layout.relative_position is not None:
            self.relative = RelativePosition(net, f"{name}.relative")
        self._head_dim = layout.head_dim

    def forward(self, x: Tensor, view: AbstractView, entries: Entries | None) -> Tensor:
        """What the heads gather, projected; ``entries`` if positions are relative."""
        batch, tokens = x.shape[0], x.shape[1]

        def heads(inside: Tensor) -> Tensor:
            return inside.reshape(batch, tokens, -1, self._head_dim).transpose(1, 2)

        query = heads(self.query(x, view)) * self._head_dim**-0.5
        key, value = heads(self.key(x, view)), heads(self.value(x, view))
        logits = query @ key.transpose(-2, -1)
        if self.relative is not None and entries is not None:
            # for each query position one product, of all its heads with the pairs' vectors
            by_token = query.permute(2, 0, 1, 3).contiguous().view(tokens, -1, self._head_dim)
            relative = by_token @ self.relative("key", entries).transpose(-2, -1)
            logits = logits + relative.reshape(tokens, batch, -1, tokens).permute(1, 2, 0, 3)
        weights = logits.softmax(-1)
        attended = (weights @ value).transpose(1, 2)
        if self.relative is not None and entries is not None:
            by_token = weights.permute(2, 0, 1, 3).contiguous().view(tokens, -1, tokens)
            relative = by_token @ self.relative("value", entries)
            relative = relative.reshape(tokens, batch, -1, self._head_dim)
            attended = attended + relative.transpose(0, 1)
        attended = attended.contiguous().view(batch, tokens, -1)
        return self.project(attended, view)


class TransformerBlock(nn.Module):
    """Attention, then two linear layers with a GELU: each sees the stream's norm and adds to it."""

    def __init__(self, net: AbstractNet, block: VitBlockLayout, layout: VitLayout) -> None:
        super().__init__()
        here = block.name
        self.attention_norm = ElasticLayerNorm(net, f"{here}.attention_norm")
        self.attention = Attention(net, f"{here}.attention", layout)
        self.mlp_norm = ElasticLayerNorm(net, f"{here}.mlp_norm")
        self.mlp = nn.ModuleDict(
            {
                "expand": ElasticLinear(net, f"{here}.mlp.expand"),
                "project": ElasticLinear(net, f"{here}.mlp.project"),
            }
        )
        self._block = block.block

    def forward(self, x: Tensor, view: AbstractView, entries: Entries | None) -> Tensor:
        """The stream after this block."""
        attended = self.attention(self.attention_norm(x, view), view, entries)
        x = x + view.gate(attended, self._block)
        hidden = F.gelu(self.mlp["expand"](self.mlp_norm(x, view), view))
        return x + view.gate(self.mlp["project"](hidden, view), self._block)


class PatchEmbedding(nn.Module):
    """One vector for each patch of an image, by a convolution that does not overlap."""

    def __init__(self, net: AbstractNet, name: str, patch: int) -> None:
        super().__init__()
        self.weight = net.parameter_for(f"{name}.weight")
        self.bias = net.parameter_for(f"{name}.bias")
        self._weight = net.space.weight[f"{name}.weight"]
        self._bias = net.space.weight[f"{name}.bias"]
        self._patch = patch
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, images: Tensor, view: AbstractView) -> Tensor:
        """(batch, 3, side, side) -> (batch, patches, width)."""
        weight, bias = view.weight(self.weight, self._weight), view.weight(self.bias, self._bias)
        x = F.conv2d(images, weight, bias, self._patch)
        return x.reshape(x.shape[0], -1, x.shape[2] * x.shape[3]).transpose(1, 2)


class ViTNet(AbstractNet):
    """Patches, blocks, norm, classifier. Images (batch, 3, side, side) -> logits (batch, classes).

    There is no BatchNorm: ``folded`` changes nothing and ``statistics`` are not used.
    """

    def __init__(self, space: SearchSpace, arch: Arch, folded: bool) -> None:
        super().__init__(space, arch)
        layout = space.layout
        assert isinstance(layout, VitLayout)
        self.patches = PatchEmbedding(self, "patches", layout.patch)
        self.class_token = self.parameter_for("class_token")
        self.positions = self.parameter_for("positions")
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        self._blocks = [b for b in layout.blocks if b.block is None or b.block.present(arch)]
        self.blocks = nn.ModuleList(TransformerBlock(self, b, layout) for b in self._blocks)
        self.norm = ElasticLayerNorm(self, "norm")
        self.classifier = ElasticLinear(self, "classifier")
        self._relative = layout.relative_position is not None
        if layout.relative_position is not None:  # the same for all blocks, and not learnt
            rows, columns = relative_entries(layout.grid, layout.relative_position)
            self.register_buffer("rows", rows, persistent=False)
            self.register_buffer("columns", columns, persistent=False)

    def _entries(self) -> Entries | None:
        return (self.get_buffer("rows"), self.get_buffer("columns")) if self._relative else None

    def run(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: TensorStatistics | StatisticsRecorder | None,
    ) -> Tensor:
        """The forward pass; see ``AbstractNet.run``."""
        x = self.patches(images, view)
        token = view.weight(self.class_token, self.space.weight["class_token"])
        x = torch.cat((token.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + view.weight(self.positions, self.space.weight["positions"])
        for block, layout in zip(self.blocks, self._blocks, strict=True):
            if view.present(layout.block):
                x = block(x, view, self._entries())
        return self.classifier(self.norm(x, view)[:, 1:].mean(1), view)
