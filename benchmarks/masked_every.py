"""What do masked steps buy: every m-th step masked, the others sliced, at equal training time.

    python -m benchmarks.masked_every --out runs/masked_every
    python -m benchmarks.masked_every --out runs/m --every 1 8 --set epochs=10

A masked step costs a whole supernet and tells the generator which archs are good; a sliced step
costs its subnet. Both are timed first, in turn, a few of each a round, in processor time; what m
costs follows from that. The first m trains for the recipe's epochs, every other for as many as cost
the same. Compared is the mean accuracy over the recipe's budgets, paired with the first m's of the
same seed: on held-out images, by which one decides, and on test images.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

from benchmarks.parts.comparison import build_parser, compare
from benchmarks.parts.step_costs import Costs, Trial, Variants
from models.command import tells_mistakes
from trainer.recipes.config import with_settings
from trainer.recipes.recipe import Recipe

COST_ROUNDS = 20
STEPS_A_ROUND = 6
"""Of each kind: a step costs what was drawn (resolution, and size if sliced), and draws differ."""


def masked_costs(recipe: Recipe, variants: Variants) -> Costs:
    """What a step costs at each m, from steps of both kinds timed in turn.

    Updates of the distribution are timed too and cost every m the same.
    """
    trial = Trial(recipe)
    costs: Costs = {name: [] for name in variants}
    for turn in range(COST_ROUNDS + 1):
        pairs = [
            (trial.step_ms(masked=True), trial.step_ms(masked=False)) for _ in range(STEPS_A_ROUND)
        ]
        masked_ms, sliced_ms = (statistics.mean(steps) for steps in zip(*pairs, strict=True))
        updates_ms = trial.update_ms() / trial.shift_every
        if not turn:
            continue  # the first of everything
        for name, settings in variants.items():
            every = with_settings(recipe, settings).generator.masked_every
            costs[name].append(sliced_ms + (masked_ms - sliced_ms) / every + updates_ms)
    return costs


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = build_parser("masked_every", __doc__)
    parser.add_argument("--every", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="M")
    options = parser.parse_args(arguments)
    variants = {f"m={m}": [f"generator.masked_every={m}"] for m in options.every}
    compare("masked_every", options, variants, masked_costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
