"""MBConvNet: the forward pass of the convolutional spaces (``models.spaces.mbconv``). Uses torch."""

from __future__ import annotations

from torch import Tensor, nn

from models.arch import Arch
from models.nets.elastic import (
    AbstractNet,
    ElasticConv2d,
    ElasticLinear,
    StatisticsRecorder,
    TensorStatistics,
)
from models.nets.view import AbstractView
from models.space import SearchSpace
from models.spaces.mbconv import BlockLayout, MBConvLayout

BatchStatistics = TensorStatistics | StatisticsRecorder | None


class InvertedResidual(nn.Module):
    """Expand, convolve, project (MobileNetV2); fused: expand and convolve at once."""

    def __init__(
        self, net: AbstractNet, layout: BlockLayout, activation: str, folded: bool
    ) -> None:
        super().__init__()
        self._layout = layout
        here = layout.name
        self.expand = None
        if layout.expands:
            self.expand = ElasticConv2d(
                net, f"{here}.expand", activation=activation, folded=folded
            )
        self.spatial = ElasticConv2d(
            net,
            f"{here}.spatial",
            stride=layout.stride,
            depthwise=not layout.fused,
            activation=activation,
            folded=folded,
        )
        self.project = ElasticConv2d(net, f"{here}.project", activation=None, folded=folded)
        if layout.shortcut and self.project.norm is not None:
            nn.init.zeros_(self.project.norm.weight)  # a residual block starts as the identity

    def forward(self, x: Tensor, view: AbstractView, statistics: BatchStatistics) -> Tensor:
        inside = x if self.expand is None else self.expand(x, view, statistics)
        inside = self.spatial(inside, view, statistics)
        inside = self.project(inside, view, statistics)
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
        self._blocks = []
        for block in layout.blocks:
            if block.block is not None and not block.block.present(arch):
                continue
            stage = int(block.name.split(".")[1])
            if stage == len(self.stages):
                self.stages.append(nn.ModuleList())
            self.stages[stage].append(InvertedResidual(self, block, act, folded))
            self._blocks.append(block)
        self.head = ElasticConv2d(self, "head", activation=act, folded=folded)
        self.classifier = ElasticLinear(self, "classifier")

    def run(self, images: Tensor, view: AbstractView, statistics: BatchStatistics) -> Tensor:
        x = self.stem(images, view, statistics)
        blocks = (block for stage in self.stages for block in stage)
        for block, layout in zip(blocks, self._blocks, strict=True):
            if view.present(layout.block):
                x = block(x, view, statistics)
        x = self.head(x, view, statistics)
        return self.classifier(x.mean((2, 3)), view)
