"""The family of vision transformers: one width and depth, heads and MLP ratio for each block.

The structure is AutoFormer's (arXiv 2107.00651, with the options its published results were
trained with): patches by a convolution, a class token, absolute positions, pre-norm blocks, and
the mean of the patch tokens (not the class token) before the classifier. Heads have a fixed
width, so that a block with fewer heads has narrower queries, keys and values. These are three
tables here: AutoFormer keeps one, of which a subnet with fewer heads has to take every third row.

*Relative position* adds to each attention logit the product of the query with a vector that
depends on how far apart two tokens are, and likewise to the values: one table for rows and one
for columns, each for keys and for values, whose entry 0 is for pairs with the class token
(Shaw et al., arXiv 1803.02155, in two dimensions). Its two matrix products count as FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import mul

from models.space.arch import Choice
from models.space.search_space import SearchSpace
from models.space.sizes import Block, Decision, Product, Size, Weight, chosen, derived, fixed


@dataclass(frozen=True)
class VitBlockLayout:
    """What the forward pass must know of a block: no sizes, only where it is."""

    name: str
    block: Block | None


@dataclass(frozen=True)
class VitLayout:
    """What the forward pass must know of the network: only sizes that no decision changes.

    ``relative_position`` is the distance, in patches, beyond which all are alike; None: not used.
    ``stepped_bias``: whether values have a bias of their own for each number of heads.
    """

    blocks: tuple[VitBlockLayout, ...]
    patch: int
    grid: int
    head_dim: int
    relative_position: int | None
    stepped_bias: bool = False


def hidden_width(embed_dim: Choice, mlp_ratio: Choice) -> int:
    """Units between a block's two linear layers."""
    return int(embed_dim * mlp_ratio)


def steps_of(choices: tuple[int, ...]) -> Callable[[int], int]:
    """The rule that counts the choices up to one of them."""
    return lambda choice: choices.index(choice) + 1


def vit_space(
    name: str,
    *,
    image: int,
    patch: int,
    embed_dim: tuple[int, ...],
    depth: tuple[int, ...],
    num_heads: tuple[int, ...],
    mlp_ratio: tuple[float, ...],
    head_dim: int,
    num_classes: int,
    relative_position: int | None = None,
    stepped_bias: bool = False,
) -> SearchSpace:
    """Lay out a space of the family; choices ascend, ``image`` and ``patch`` are in pixels.

    ``relative_position``: the largest distance told apart, in patches; None for none.
    ``stepped_bias``: the bias of a block's values is not shared between numbers of heads. It is
    the sum of a table's first rows, one for the smallest number, two for the next, and so on:
    the table is sliced by prefix like all weights and holds any bias for every number.
    """
    assert image % patch == 0, "patches must tile the image"
    grid = image // patch
    tokens = fixed(grid * grid + 1)
    patches, one = fixed(grid * grid), fixed(1)
    head_width = fixed(head_dim)

    decisions = [Decision("embed_dim", embed_dim), Decision("depth", depth)]
    weights: list[Weight] = []
    products: list[Product] = []
    layouts: list[VitBlockLayout] = []
    width = chosen("embed_dim")

    def norm(where: str, block: Block | None) -> None:
        weights.extend(Weight(f"{where}.{part}", (width,), None, block) for part in NORM_PARTS)

    def linear(
        where: str, out: Size, into: Size, at: Size, block: Block | None, steps: Size | None = None
    ) -> None:
        weights.append(Weight(f"{where}.weight", (out, into), at, block))
        bias = (out,) if steps is None else (steps, out)
        weights.append(Weight(f"{where}.bias", bias, None, block))

    pixels = fixed(patch)
    weights.append(Weight("patches.weight", (width, fixed(3), pixels, pixels), patches))
    weights.append(Weight("patches.bias", (width,)))
    weights.append(Weight("class_token", (width,)))
    weights.append(Weight("positions", (tokens, width)))

    for index in range(max(depth)):
        here = f"blocks.{index}"
        block = Block(here, "depth", index) if index >= min(depth) else None
        heads, ratio = f"num_heads.{index}", f"mlp_ratio.{index}"
        decisions += [Decision(heads, num_heads, block), Decision(ratio, mlp_ratio, block)]
        attended = derived(mul, chosen(heads), head_width, unit=head_dim)
        hidden = Size(("embed_dim", ratio), hidden_width)

        norm(f"{here}.attention_norm", block)
        for part in ("query", "key"):
            linear(f"{here}.attention.{part}", attended, width, tokens, block)
        steps = derived(steps_of(num_heads), chosen(heads)) if stepped_bias else None
        linear(f"{here}.attention.value", attended, width, tokens, block, steps)
        linear(f"{here}.attention.project", width, attended, tokens, block)
        # logits from queries and keys, and the sum of values that they weigh
        pairs = (tokens, tokens, attended)
        products += [Product(f"{here}.attention.{part}", pairs, block) for part in PAIR_PRODUCTS]
        if relative_position is not None:
            entries = fixed(2 * relative_position + 2)
            for part in RELATIVE_TABLES:
                table = f"{here}.attention.relative.{part}"
                weights.append(Weight(table, (entries, head_width), None, block))
            products += [
                Product(f"{here}.attention.relative.{part}", pairs, block) for part in PAIR_PRODUCTS
            ]
        norm(f"{here}.mlp_norm", block)
        linear(f"{here}.mlp.expand", hidden, width, tokens, block)
        linear(f"{here}.mlp.project", width, hidden, tokens, block)
        layouts.append(VitBlockLayout(here, block))

    norm("norm", None)
    linear("classifier", fixed(num_classes), width, one, None)

    return SearchSpace(
        name=name,
        decisions=tuple(decisions),
        weights=tuple(weights),
        resolution=fixed(image),
        num_classes=num_classes,
        net="models.nets.vit:ViTNet",
        layout=VitLayout(tuple(layouts), patch, grid, head_dim, relative_position, stepped_bias),
        products=tuple(products),
    )


NORM_PARTS = ("weight", "bias")
PAIR_PRODUCTS = ("logits", "values")
RELATIVE_TABLES = ("key_rows", "key_columns", "value_rows", "value_columns")
