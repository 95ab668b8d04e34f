"""Sizes: the parts that a search space is described with, each size a function of decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from models.space.arch import Choice


@dataclass(frozen=True)
class Block:
    """A residual block that is there when ``arch[depth] > index``: subnets keep a prefix."""

    name: str
    depth: str
    index: int

    def present(self, arch: Mapping[str, Choice]) -> bool:
        return arch[self.depth] > self.index


@dataclass(frozen=True)
class Decision:
    """One thing to choose. ``choices`` ascend in FLOPs; ``depth.3`` is of the kind ``depth``.

    A decision that belongs to a block does not matter where that block is dropped.
    """

    name: str
    choices: tuple[Choice, ...]
    block: Block | None = None

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def index(self) -> int | None:
        """Position among the decisions of its kind; None when there is only one."""
        tail = self.name.partition(".")[2]
        return int(tail) if tail else None


@dataclass(frozen=True, eq=False)
class Size:
    """An integer that follows from some decisions, such as a width or a number of pixels.

    ``unit``: so many of its channels belong together, as those of a head.
    """

    decisions: tuple[str, ...]
    rule: Callable[..., int]
    unit: int = 1

    def __call__(self, arch: Mapping[str, Choice]) -> int:
        return self.rule(*(arch[name] for name in self.decisions))


def fixed(value: int) -> Size:
    """A size that no decision changes."""
    return Size((), lambda: value)


def chosen(decision: str) -> Size:
    """A size that is the choice itself."""
    return Size((decision,), int)


def derived(rule: Callable[..., int], *of: Size, unit: int = 1) -> Size:
    """A size computed from other sizes: ``derived(lambda a, b: a * b, width, ratio)``."""
    names = names_of(of)

    def combined(*choices: Choice) -> int:
        arch = dict(zip(names, choices, strict=True))
        return rule(*(size(arch) for size in of))

    return Size(names, combined, unit)


def names_of(sizes: Iterable[Size]) -> tuple[str, ...]:
    """The decisions that some sizes follow from, each once."""
    return tuple(dict.fromkeys(name for size in sizes for name in size.decisions))


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of the supernet, of which a subnet uses a prefix along every axis.

    ``positions``: at how many places of one image each element is multiplied once (pixels of the
    output map, tokens). It is what makes the weight cost FLOPs; None for biases and norms.
    ``centred``: the last two axes are a kernel, of which a smaller one is the centre crop.
    """

    name: str
    shape: tuple[Size, ...]
    positions: Size | None = None
    block: Block | None = None
    centred: bool = False

    def shape_at(self, arch: Mapping[str, Choice]) -> tuple[int, ...]:
        return tuple(size(arch) for size in self.shape)

    @property
    def decisions(self) -> tuple[str, ...]:
        """All that its sizes follow from."""
        return names_of(self.shape if self.positions is None else (*self.shape, self.positions))


@dataclass(frozen=True, eq=False)
class Product:
    """Multiply-adds between activations (attention), as a product of sizes."""

    name: str
    factors: tuple[Size, ...]
    block: Block | None = None

    @property
    def decisions(self) -> tuple[str, ...]:
        """All that its sizes follow from."""
        return names_of(self.factors)


@dataclass(frozen=True, eq=False)
class Norm:
    """A BatchNorm: its statistics belong to the arch and are folded into the weight before it."""

    name: str
    size: Size
    conv: str
    block: Block | None = None
