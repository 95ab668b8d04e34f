"""What do masked steps buy: every m-th step masked, the others sliced, at equal training time.

    python -m benchmarks.masked_every --out runs/masked_every
    python -m benchmarks.masked_every --out runs/m --every 1 8 --set epochs=10

A masked step costs a whole supernet and tells the generator which archs are good; a sliced step
costs its subnet. Both are timed first, in turn, a few of each a round, in processor time; what m
costs follows from that. The first m trains for the recipe's epochs, every other for as many as cost
the same. Compared is the mean accuracy over the recipe's budgets, on the test images, and paired
with the first m's of the same seed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.samplers import (
    Costs,
    Variants,
    accuracies,
    build_parser,
    measure,
    print_accuracies,
)
from models.relaxed import RelaxedFlops
from trainer.config import with_settings
from trainer.dry_run import one_step, probe_of
from trainer.optim import schedule_at
from trainer.recipe import Recipe
from trainer.run_data import read_splits, run_data
from trainer.state import fresh_state
from trainer.step import pretrain_generator

COST_ROUNDS = 20
STEPS_A_ROUND = 6
"""Of each kind: a step costs what was drawn (resolution, and size if sliced), and draws differ."""


def masked_costs(recipe: Recipe, variants: Variants) -> Costs:
    """What a step costs at each m, from steps of both kinds timed in turn in one process.

    The generator is taught its budgets before, so that sliced steps are as large as in training.
    Updates of the distribution are timed too and cost every m the same.
    """
    splits = read_splits(recipe)
    data, state = run_data(recipe, splits), fresh_state(recipe, splits)
    relaxed_flops = RelaxedFlops(state.generator.space.flops_rule)
    options = replace(recipe.generator, pretrain_steps=min(recipe.generator.pretrain_steps, 200))
    pretrain_generator(state.generator, relaxed_flops, options, state.rng)
    schedule = schedule_at(0, 2, recipe)
    stream = data.train.stream(0, 0)

    def step_ms(*, masked: bool) -> float:
        start_s = time.process_time()
        one_step(state, relaxed_flops, next(stream), recipe, schedule, masked=masked)
        return 1000 * (time.process_time() - start_s)

    def update_ms() -> float:
        if not state.sampler.learns:
            return 0.0
        start_s = time.process_time()
        state.sampler.update(probe_of(state, data.steer.batch(0, 0), recipe, schedule), state.rng)
        state.keep_weights()
        return 1000 * (time.process_time() - start_s)

    costs: Costs = {name: [] for name in variants}
    for turn in range(COST_ROUNDS + 1):
        pairs = [(step_ms(masked=True), step_ms(masked=False)) for _ in range(STEPS_A_ROUND)]
        masked_ms, sliced_ms = (statistics.mean(steps) for steps in zip(*pairs, strict=True))
        updates_ms = update_ms() / recipe.shift_every
        if not turn:
            continue  # the first of everything
        for name, settings in variants.items():
            every = with_settings(recipe, settings).generator.masked_every
            costs[name].append(sliced_ms + (masked_ms - sliced_ms) / every + updates_ms)
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = build_parser("masked_every", __doc__)
    parser.add_argument("--every", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="M")
    options = parser.parse_args(arguments)
    variants = {f"m={m}": [f"generator.masked_every={m}"] for m in options.every}
    try:
        result = measure(options, variants, masked_costs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = accuracies(options, variants)
    print_accuracies(options, table)
    print(json.dumps({"benchmark": "masked_every", "test_accuracy": table, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
