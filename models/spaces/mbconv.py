"""The family of convolutional spaces: a stem, stages of inverted residual blocks, a head.

A stage has one width, depth, kernel and expansion for all its blocks (AttentiveNAS's table has
the same form: arXiv 2011.09011). A block expands (1x1), convolves each channel (depthwise k x k)
and projects (1x1); a *fused* block does the first two as one dense k x k convolution, which costs
more FLOPs and runs several times faster a FLOP on a CPU. The stage's first block changes width and
stride; it has a shortcut where neither changes at any choice, and like all others is
dropped by depth only beyond the stage's smallest depth.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.arch import Choice
from models.space import (
    Block,
    Decision,
    Norm,
    SearchSpace,
    Size,
    Weight,
    chosen,
    derived,
    fixed,
)


@dataclass(frozen=True)
class Stage:
    """A row of the table: choices ascend. ``expand`` 1 means no expansion convolution (MBConv)."""

    stride: int
    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    expand: tuple[Choice, ...]
    fused: bool = False


@dataclass(frozen=True)
class BlockLayout:
    """What the forward pass must know of a block: no sizes, only its kind."""

    name: str
    stride: int
    fused: bool
    expands: bool
    shortcut: bool
    block: Block | None


@dataclass(frozen=True)
class MBConvLayout:
    """What the forward pass must know of the network: no sizes."""

    blocks: tuple[BlockLayout, ...]
    stem_stride: int
    activation: str


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``value``, at least one."""
    return max(divisor, int(value + divisor / 2) // divisor * divisor)


def _expanded(inside: Size, ratio: str) -> Size:
    """Channels between expansion and projection: ``inside`` x the choice of ``ratio``, by 8."""

    def rule(*choices: Choice) -> int:
        width = inside(dict(zip(inside.decisions, choices[:-1], strict=True)))
        return make_divisible(width * choices[-1])

    return Size((*inside.decisions, ratio), rule)


def mbconv_space(
    name: str,
    *,
    resolution: tuple[int, ...],
    stem: tuple[int, ...],
    stem_stride: int,
    stages: tuple[Stage, ...],
    head: tuple[int, ...],
    num_classes: int,
    activation: str,
) -> SearchSpace:
    """Lay out a space of the family. Widths of ``head`` are of the last 1x1 convolution."""
    decisions: list[Decision] = []
    weights: list[Weight] = []
    norms: list[Norm] = []
    layouts: list[BlockLayout] = []

    def decide(kind: str, choices: tuple[Choice, ...]) -> Size:
        decisions.append(Decision(kind, choices))
        return chosen(kind)

    def conv(where: str, shape: tuple[Size, ...], pixels: Size, block: Block | None) -> None:
        centred = where.endswith(".spatial")
        weights.append(Weight(f"{where}.weight", shape, pixels, block, centred))
        for part in ("norm.weight", "norm.bias"):
            weights.append(Weight(f"{where}.{part}", shape[:1], None, block))
        norms.append(Norm(f"{where}.norm", shape[0], f"{where}", block))

    image = decide("resolution", resolution)
    side = derived(lambda r: -(-r // stem_stride), image)
    three, one = fixed(3), fixed(1)
    width = decide("width.0", stem)
    conv("stem", (width, three, three, three), derived(lambda s: s * s, side), None)

    for number, stage in enumerate(stages, start=1):
        before = width
        width = decide(f"width.{number}", stage.width)
        decide(f"depth.{number - 1}", stage.depth)
        kernel = decide(f"kernel_size.{number - 1}", stage.kernel)
        decide(f"expand_ratio.{number - 1}", stage.expand)
        for index in range(max(stage.depth)):
            here = f"stages.{number - 1}.{index}"
            block = None
            if index >= min(stage.depth):
                block = Block(here, f"depth.{number - 1}", index)
            inside = before if index == 0 else width
            stride = stage.stride if index == 0 else 1
            entered = side
            if stride > 1:
                side = derived(lambda s, d=stride: -(-s // d), entered)
            pixels = derived(lambda s: s * s, side)
            expands = not stage.fused and stage.expand != (1,)
            middle = _expanded(inside, f"expand_ratio.{number - 1}") if expands else inside
            if stage.fused:
                middle = _expanded(inside, f"expand_ratio.{number - 1}")
                conv(f"{here}.spatial", (middle, inside, kernel, kernel), pixels, block)
            else:
                if expands:
                    entry = derived(lambda s: s * s, entered)
                    conv(f"{here}.expand", (middle, inside, one, one), entry, block)
                conv(f"{here}.spatial", (middle, one, kernel, kernel), pixels, block)
            conv(f"{here}.project", (width, middle, one, one), pixels, block)
            layouts.append(BlockLayout(here, stride, stage.fused, expands, index > 0, block))

    last = decide(f"width.{len(stages) + 1}", head)
    conv("head", (last, width, one, one), derived(lambda s: s * s, side), None)
    weights.append(Weight("classifier.weight", (fixed(num_classes), last), one))
    weights.append(Weight("classifier.bias", (fixed(num_classes),)))

    return SearchSpace(
        name=name,
        decisions=tuple(decisions),
        weights=tuple(weights),
        resolution=image,
        num_classes=num_classes,
        net="models.nets.mbconv:MBConvNet",
        layout=MBConvLayout(tuple(layouts), stem_stride, activation),
        norms=tuple(norms),
    )
