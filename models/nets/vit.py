"""ViTNet: the forward pass of the vision transformers (``models.spaces.vit``). Uses torch.

Each decision silences what it removes once, where it is next used: width, heads and hidden units in
the weights that read them (``Masked``), and width in the sums of LayerNorm; depth on what a block
adds. A second mask in the same path would make the gradient of a silenced channel zero times zero.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nets.elastic import AbstractNet, ElasticLinear
from models.nets.normalize import BatchStatistics
from models.nets.recompute import RunBlock, run_once
from models.nets.relative import (
    GridIndex,
    GridPositions,
    PairIndex,
    PairwisePositions,
    RelativePosition,
)
from models.nets.view import AbstractView
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.spaces.vit import VitBlockLayout, VitLayout

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


class SteppedLinear(ElasticLinear):
    """A linear layer whose bias is the sum of the rows of a table (``vit_space``)."""

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = view.total(view.weight(self.bias, self._bias), self._bias.shape[0], 0)[0]
        return F.linear(x, view.weight(self.weight, self._weight), bias)


def is_fused(x: Tensor) -> bool:
    """Whether attention without relative positions runs as one kernel: it is what GPUs have."""
    return x.is_cuda


class Attention(nn.Module):
    """Attention of as many heads as its weights have rows for. (batch, tokens, width) both ways.

    On GPUs one fused kernel. Elsewhere plain matrix products: torch counts their FLOPs, and every
    reshape leaves the number of heads to be inferred, so that the exported graph fits any subnet.
    (A ``reshape`` of a tensor that is not contiguous would be exported with the number computed
    from all sizes.)
    """

    def __init__(
        self, net: AbstractNet, name: str, layout: VitLayout, index: nn.Module | None
    ) -> None:
        super().__init__()
        self.query = ElasticLinear(net, f"{name}.query")
        self.key = ElasticLinear(net, f"{name}.key")
        linear = SteppedLinear if layout.stepped_bias else ElasticLinear
        self.value = linear(net, f"{name}.value")
        self.project = ElasticLinear(net, f"{name}.project")
        self.relative: RelativePosition | None = None
        if index is not None:
            positions = GridPositions if isinstance(index, GridIndex) else PairwisePositions
            self.relative = positions(net, f"{name}.relative", index)
        self._head_dim = layout.head_dim

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        """What the heads gather, projected."""
        batch, tokens = x.shape[0], x.shape[1]

        def heads(inside: Tensor) -> Tensor:
            return inside.reshape(batch, tokens, -1, self._head_dim).transpose(1, 2)

        query = heads(self.query(x, view)) * self._head_dim**-0.5
        key, value = heads(self.key(x, view)), heads(self.value(x, view))
        if self.relative is None and is_fused(x):
            attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:
            logits = query @ key.transpose(-2, -1)
            if self.relative is not None:
                logits = logits + self.relative.logits(query)
            weights = logits.softmax(-1)
            attended = weights @ value
            if self.relative is not None:
                attended = attended + self.relative.values(weights)
        attended = attended.transpose(1, 2).contiguous().view(batch, tokens, -1)
        return self.project(attended, view)


class TransformerBlock(nn.Module):
    """Attention, then two linear layers with a GELU: each sees the stream's norm and adds to it."""

    def __init__(
        self, net: AbstractNet, block: VitBlockLayout, layout: VitLayout, index: nn.Module | None
    ) -> None:
        super().__init__()
        here = block.name
        self.attention_norm = ElasticLayerNorm(net, f"{here}.attention_norm")
        self.attention = Attention(net, f"{here}.attention", layout, index)
        self.mlp_norm = ElasticLayerNorm(net, f"{here}.mlp_norm")
        self.mlp = nn.ModuleDict(
            {
                "expand": ElasticLinear(net, f"{here}.mlp.expand"),
                "project": ElasticLinear(net, f"{here}.mlp.project"),
            }
        )
        self._block = block.block

    def forward(self, x: Tensor, view: AbstractView, statistics: BatchStatistics) -> Tensor:
        """The stream after this block; there are no ``statistics`` to use."""
        attended = self.attention(self.attention_norm(x, view), view)
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

    There is no BatchNorm: ``statistics`` are not used, and ``folded`` is how relative position is
    computed (``models.nets.relative``).
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
        index = None  # shared by all blocks
        if layout.relative_position is not None:
            index = (GridIndex if folded else PairIndex)(layout.grid, layout.relative_position)
        self.blocks = nn.ModuleList(TransformerBlock(self, b, layout, index) for b in self._blocks)
        self.norm = ElasticLayerNorm(self, "norm")
        self.classifier = ElasticLinear(self, "classifier")

    @property
    def branches(self) -> int:
        return 2 * len(self._blocks)

    def run(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
        run_block: RunBlock = run_once,
    ) -> Tensor:
        return self.classifier(self._tokens(images, view, statistics, run_block).mean(1), view)

    def maps(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
        run_block: RunBlock = run_once,
    ) -> list[Tensor]:
        tokens = self._tokens(images, view, statistics, run_block)
        side = math.isqrt(tokens.shape[1])
        return [tokens.transpose(1, 2).unflatten(2, (side, side))]

    def _tokens(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
        run_block: RunBlock,
    ) -> Tensor:
        """Of each patch, normalized: (batch, patches, width)."""
        x = self.patches(images, view)
        token = view.weight(self.class_token, self.space.weight["class_token"])
        x = torch.cat((token.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + view.weight(self.positions, self.space.weight["positions"])
        for block, layout in zip(self.blocks, self._blocks, strict=True):
            if view.present(layout.block):
                x = run_block(block, x, view, statistics)
        return self.norm(x, view)[:, 1:]
