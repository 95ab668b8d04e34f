"""MBConvNet: the forward pass of the CNN spaces (``models.spaces.mbconv``). Uses torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nets.elastic import (
    ACTIVATIONS,
    AbstractNet,
    ElasticConv2d,
    ElasticLinear,
    ElasticPointwise,
    SqueezeExcite,
)
from models.nets.normalize import BatchStatistics
from models.nets.recompute import RunBlock, run_once
from models.nets.view import AbstractView
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.spaces.mbconv import BlockLayout, MBConvLayout, ProjectionLayout


class ProjectedShortcut(nn.Module):
    """What AttentiveNAS adds to a stage's first block: its input, made to fit the output.

    Average pooling where the block strides (odd sides are padded on both ends, as there), then a
    1x1 convolution without norm where the channels differ. Where they happen to agree the input
    passes unchanged; relaxed, both ways are computed and weighed.
    """

    def __init__(self, net: AbstractNet, name: str, layout: ProjectionLayout, stride: int) -> None:
        super().__init__()
        self.conv = ElasticPointwise(net, name)
        self._layout, self._stride = layout, stride

    def forward(self, x: Tensor, view: AbstractView) -> Tensor:
        if self._stride > 1:
            x = F.avg_pool2d(x, self._stride, padding=x.shape[-1] % self._stride)
        differs = view.holds(self._layout.differs)
        if differs is False:
            return x
        converted = self.conv(x, view)
        if differs is True:
            return converted
        differs = differs.to(x)
        same = F.pad(x, (0, 0, 0, 0, 0, converted.shape[1] - x.shape[1]))
        return differs * converted + (1 - differs) * same


class InvertedResidual(nn.Module):
    """Expand, convolve, project (MobileNetV2); fused: expand and convolve at once."""

    def __init__(
        self, net: AbstractNet, layout: BlockLayout, activation: str, folded: bool
    ) -> None:
        super().__init__()
        self._layout = layout
        here = layout.name
        self.expand: ElasticConv2d | None = None
        if layout.expands:
            self.expand = ElasticConv2d(net, f"{here}.expand", activation=activation, folded=folded)
        self.spatial = ElasticConv2d(
            net,
            f"{here}.spatial",
            stride=layout.stride,
            depthwise=not layout.fused,
            activation=activation,
            folded=folded,
        )
        self.squeeze: SqueezeExcite | None = None
        if layout.squeeze is not None:
            squeeze = layout.squeeze
            self.squeeze = SqueezeExcite(net, f"{here}.squeeze", squeeze.activation, squeeze.gate)
        self.project = ElasticConv2d(net, f"{here}.project", activation=None, folded=folded)
        self.shortcut: ProjectedShortcut | None = None
        if layout.projection is not None:
            self.shortcut = ProjectedShortcut(
                net, f"{here}.shortcut.conv", layout.projection, layout.stride
            )
        residual = layout.shortcut or layout.projection is not None
        if residual and self.project.norm is not None:
            nn.init.zeros_(self.project.norm.weight)  # a residual block starts as the identity

    def forward(self, x: Tensor, view: AbstractView, statistics: BatchStatistics) -> Tensor:
        inside = x if self.expand is None else self.expand(x, view, statistics)
        inside = self.spatial(inside, view, statistics)
        if self.squeeze is not None:
            inside = self.squeeze(inside, view)
        inside = self.project(inside, view, statistics)
        if self.shortcut is not None:
            return self.shortcut(x, view) + inside
        return x + view.gate(inside, self._layout.block) if self._layout.shortcut else inside


class MBConvNet(AbstractNet):
    """Stem, stages, head, classifier. Images (batch, 3, side, side) -> logits (batch, classes)."""

    def __init__(self, space: SearchSpace, arch: Arch, folded: bool) -> None:
        super().__init__(space, arch)
        layout = space.layout
        assert isinstance(layout, MBConvLayout)
        act = layout.activation
        self.stem = ElasticConv2d(
            self, "stem", stride=layout.stem_stride, activation=act, folded=folded
        )
        self.stages = nn.ModuleList()
        self._blocks: list[BlockLayout] = []
        for block in layout.blocks:
            if block.block is not None and not block.block.present(arch):
                continue
            stage = int(block.name.split(".")[1])
            if stage == len(self.stages):
                self.stages.append(nn.ModuleList())
            blocks = self.stages[stage]
            assert isinstance(blocks, nn.ModuleList)
            blocks.append(InvertedResidual(self, block, act, folded))
            self._blocks.append(block)
        self.head_expand: ElasticConv2d | None = None
        self._head_activation = ACTIVATIONS[act]
        self._turned = layout.turned
        self.head: ElasticConv2d | ElasticPointwise
        if layout.pooled_head:
            self.head_expand = ElasticConv2d(self, "head_expand", activation=act, folded=folded)
            self.head = ElasticPointwise(self, "head")
        else:
            self.head = ElasticConv2d(self, "head", activation=act, folded=folded)
        self.classifier = ElasticLinear(self, "classifier")

    @property
    def branches(self) -> int:
        return sum(layout.shortcut for layout in self._blocks)

    def run(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
        run_block: RunBlock = run_once,
    ) -> Tensor:
        x = self.maps(images, view, statistics, run_block)[-1]
        return self.classifier(self._pooled(x, view, statistics), view)

    def maps(
        self,
        images: Tensor,
        view: AbstractView,
        statistics: BatchStatistics,
        run_block: RunBlock = run_once,
    ) -> list[Tensor]:
        if self._turned:
            images = images.flip(2, 3)
        # all maps keep this order of bytes: CPUs and tensor cores convolve faster in it
        images = images.contiguous(memory_format=torch.channels_last)
        maps = [self.stem(images, view, statistics)]
        blocks = [block for stage in self.stages for block in stage.children()]
        for block, layout in zip(blocks, self._blocks, strict=True):
            if view.present(layout.block):
                x = run_block(block, maps[-1], view, statistics)
                # no longer the last of its stride: nothing else keeps it from being freed
                maps[-1 if layout.stride == 1 else len(maps) :] = [x]
        return maps

    def _pooled(self, x: Tensor, view: AbstractView, statistics: BatchStatistics) -> Tensor:
        """The head: the last map (batch, channels, side, side) -> (batch, features)."""
        if isinstance(self.head, ElasticConv2d):
            return self.head(x, view, statistics).mean((2, 3))
        assert self.head_expand is not None
        x = self.head_expand(x, view, statistics).mean((2, 3), keepdim=True)
        x = self._head_activation(self.head(x, view))
        return torch.flatten(x, 1)
