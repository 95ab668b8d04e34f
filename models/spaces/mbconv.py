"""The family of convolutional spaces: a stem, stages of inverted residual blocks, a head.

A stage has one width, depth, kernel and expansion for all its blocks (AttentiveNAS's table has
the same form: arXiv 2011.09011); a space may choose kernels block by block instead. A block expands
(1x1), convolves each channel (depthwise k x k) and projects (1x1); a *fused* block does the first
two as one dense k x k convolution, which costs more FLOPs and runs several times faster a FLOP on a
CPU. A stage's first block changes width and stride; it has no shortcut, or a projected one
(AttentiveNAS). Blocks are dropped by depth only beyond the stage's smallest depth.

A shortcut between two widths that are chosen apart needs its convolution only where they differ.
Where they agree its weight has no rows and is applied at no positions: it costs nothing. The one
exception is where both are the widest they can be: the largest subnet is the supernet, and holds
the weight for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.space.arch import Choice
from models.space.search_space import SearchSpace
from models.space.sizes import Block, Decision, Norm, Size, Weight, chosen, derived, fixed


@dataclass(frozen=True)
class Stage:
    """A row of the table: choices ascend. ``expand`` 1 means no expansion convolution (MBConv)."""

    stride: int
    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    expand: tuple[Choice, ...]
    fused: bool = False
    squeeze: bool = False


@dataclass(frozen=True)
class Squeeze:
    """Squeeze-and-excitation.

    ``hidden(inside, middle)``: its hidden width from the channels that enter the block and those
    that it scales.
    """

    hidden: Callable[[int, int], int]
    activation: str
    gate: str


@dataclass(frozen=True, eq=False)
class ProjectionLayout:
    """A shortcut across a change of width or stride.

    ``differs`` is 1 where the block changes the number of channels, else 0.
    """

    differs: Size


@dataclass(frozen=True)
class BlockLayout:
    """What the forward pass must know of a block: no sizes, only its kind."""

    name: str
    stride: int
    fused: bool
    expands: bool
    shortcut: bool
    block: Block | None
    squeeze: Squeeze | None = None
    projection: ProjectionLayout | None = None


@dataclass(frozen=True)
class MBConvLayout:
    """What the forward pass must know of the network: no sizes.

    ``pooled_head``: the head's last 1x1 convolution comes after the pooling (MobileNetV3).
    ``turned``: images are turned by 180 degrees first (``models.spaces.efficientnet_lite``).
    """

    blocks: tuple[BlockLayout, ...]
    stem_stride: int
    activation: str
    pooled_head: bool = False
    turned: bool = False


Widths = tuple[int, ...]


def make_divisible(value: float) -> int:
    """The multiple of 8 nearest to ``value``, at least 8."""
    return max(8, int(value + 4) // 8 * 8)


def _expanded(inside: Size, ratio: str) -> Size:
    """Channels between expansion and projection: ``inside`` x the choice of ``ratio``, by 8."""

    def rule(*choices: Choice) -> int:
        width = inside(dict(zip(inside.decisions, choices[:-1], strict=True)))
        return make_divisible(width * choices[-1])

    return Size((*inside.decisions, ratio), rule)


def _square(side: int) -> int:
    return side * side


def _product(a: int, b: int) -> int:
    return a * b


def _strided(side: Size, stride: int) -> Size:
    """The side of a map after a convolution with this stride: odd sides round up."""

    def rule(side: int) -> int:
        return -(-side // stride)

    return derived(rule, side)


def _times(width: Size, factor: int) -> Size:
    def rule(width: int) -> int:
        return make_divisible(width * factor)

    return derived(rule, width)


def _differs(before: Size, width: Size, befores: Widths, widths: Widths) -> Size:
    """1 where two widths differ, else 0."""
    if not set(befores) & set(widths):
        return fixed(1)

    def rule(before: int, width: int) -> int:
        return int(before != width)

    return derived(rule, before, width)


def _rows(before: Size, width: Size, differs: Size, befores: Widths, widths: Widths) -> Size:
    """Output channels of a projected shortcut: none where widths agree, save at the widest."""
    widest = max(befores), max(widths)

    def rule(before: int, width: int, differs: int) -> int:
        return width if differs or (before, width) == widest else 0

    return derived(rule, before, width, differs)


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
    squeeze: Squeeze | None = None,
    projected_shortcuts: bool = False,
    kernel_per_block: bool = False,
    head_expand: int | None = None,
    turned: bool = False,
    norm_epsilon: float = 1e-5,
) -> SearchSpace:
    """Lay out a space of the family. Widths of ``head`` are of the last 1x1 convolution.

    ``squeeze``: the rule for the stages that have it. ``projected_shortcuts``: first blocks have a
    shortcut too. ``kernel_per_block``: kernels are chosen block by block. ``head_expand``: a first
    1x1 convolution to that many times the last width; the pooling is between the two. ``turned``:
    as in ``MBConvLayout``.
    """
    decisions: list[Decision] = []
    weights: list[Weight] = []
    norms: list[Norm] = []
    layouts: list[BlockLayout] = []

    def decide(kind: str, choices: tuple[Choice, ...], block: Block | None = None) -> Size:
        decisions.append(Decision(kind, choices, block))
        return chosen(kind)

    def conv(where: str, shape: tuple[Size, ...], pixels: Size, block: Block | None) -> None:
        centred = where.endswith(".spatial")
        weights.append(Weight(f"{where}.weight", shape, pixels, block, centred))
        weights.extend(
            Weight(f"{where}.norm.{part}", shape[:1], None, block) for part in ("weight", "bias")
        )
        norms.append(Norm(f"{where}.norm", shape[0], f"{where}", block))

    def linear(where: str, shape: tuple[Size, ...], at: Size, block: Block | None) -> None:
        weights.append(Weight(f"{where}.weight", shape, at, block))
        weights.append(Weight(f"{where}.bias", shape[:1], None, block))

    image = decide("resolution", resolution)
    side = _strided(image, stem_stride)
    three, one = fixed(3), fixed(1)
    width = decide("width.0", stem)
    conv("stem", (width, three, three, three), derived(_square, side), None)

    widths = (stem,)
    for number, stage in enumerate(stages, start=1):
        before = width
        widths = (*widths, stage.width)
        width = decide(f"width.{number}", stage.width)
        decide(f"depth.{number - 1}", stage.depth)
        shared = None
        if not kernel_per_block:
            shared = decide(f"kernel_size.{number - 1}", stage.kernel)
        decide(f"expand_ratio.{number - 1}", stage.expand)
        for index in range(max(stage.depth)):
            here = f"stages.{number - 1}.{index}"
            block = None
            if index >= min(stage.depth):
                block = Block(here, f"depth.{number - 1}", index)
            kernel = shared or decide(f"kernel_size.{len(layouts)}", stage.kernel, block)
            inside = before if index == 0 else width
            stride = stage.stride if index == 0 else 1
            entered = side
            if stride > 1:
                side = _strided(entered, stride)
            pixels = derived(_square, side)
            expands = not stage.fused and stage.expand != (1,)
            middle = _expanded(inside, f"expand_ratio.{number - 1}") if expands else inside
            if stage.fused:
                middle = _expanded(inside, f"expand_ratio.{number - 1}")
                conv(f"{here}.spatial", (middle, inside, kernel, kernel), pixels, block)
            else:
                if expands:
                    entry = derived(_square, entered)
                    conv(f"{here}.expand", (middle, inside, one, one), entry, block)
                conv(f"{here}.spatial", (middle, one, kernel, kernel), pixels, block)
            if stage.squeeze:
                assert squeeze is not None, "a stage squeezes and the space does not say how"
                hidden = derived(squeeze.hidden, inside, middle)
                for part, out, into in (("reduce", hidden, middle), ("expand", middle, hidden)):
                    linear(f"{here}.squeeze.{part}", (out, into, one, one), one, block)
            conv(f"{here}.project", (width, middle, one, one), pixels, block)
            projection = None
            if index == 0 and projected_shortcuts:
                projection = ProjectionLayout(_differs(before, width, *widths[-2:]))
                rows = _rows(before, width, projection.differs, widths[-2], widths[-1])
                at = derived(_product, pixels, projection.differs)
                weights.append(Weight(f"{here}.shortcut.conv.weight", (rows, before, one, one), at))
            layouts.append(
                BlockLayout(
                    here,
                    stride,
                    stage.fused,
                    expands,
                    index > 0,
                    block,
                    squeeze if stage.squeeze else None,
                    projection,
                )
            )

    last = decide(f"width.{len(stages) + 1}", head)
    pixels = derived(_square, side)
    if head_expand is None:
        conv("head", (last, width, one, one), pixels, None)
    else:
        wide = _times(width, head_expand)
        conv("head_expand", (wide, width, one, one), pixels, None)
        weights.append(Weight("head.weight", (last, wide, one, one), one))
    weights.append(Weight("classifier.weight", (fixed(num_classes), last), one))
    weights.append(Weight("classifier.bias", (fixed(num_classes),)))

    return SearchSpace(
        name=name,
        decisions=tuple(decisions),
        weights=tuple(weights),
        resolution=image,
        num_classes=num_classes,
        net="models.nets.mbconv:MBConvNet",
        layout=MBConvLayout(
            tuple(layouts), stem_stride, activation, head_expand is not None, turned
        ),
        norms=tuple(norms),
        norm_epsilon=norm_epsilon,
    )
