"""Are budgets kept, how much of them is used, and how long does an answer take?

    python -m benchmarks.answers
    python -m benchmarks.answers --bundle runs/digits/bundle --budgets 1000

For random budgets over the range: what the bundle answers, what the generator would answer
live, and the plain argmax of the generator. Times are of one core.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.timing import machine
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.generator.answer import answer_within
from models.space.search_space import SearchSpace

_COUNTABLE = 1_000_000
"""Archs of a space that is small enough to look at all of them."""


def nearest_errors(space: SearchSpace, budgets: np.ndarray) -> np.ndarray | None:
    """|FLOPs - budget| / budget of the nearest arch there is; None where there are too many."""
    sizes = [len(decision.choices) for decision in space.decisions]
    if math.prod(sizes) > _COUNTABLE:
        return None
    choices = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1)
    flops = np.unique(space.flops_rule.batch(choices))
    after = np.searchsorted(flops, budgets).clip(1, len(flops) - 1)
    gaps = np.minimum(np.abs(flops[after - 1] - budgets), np.abs(flops[after] - budgets))
    return gaps / budgets


def measure(bundle: Bundle, budgets: np.ndarray) -> dict[str, float | int]:
    """Use, errors and milliseconds over the budgets. Asserts that none is exceeded."""
    space = bundle.space
    answer_use: list[float] = []
    live_use: list[float] = []
    argmax_error: list[float] = []
    live_ms: list[float] = []
    for budget in budgets:
        flops = space.flops(bundle.answer(budget))
        assert flops <= budget, (flops, budget)
        answer_use.append(flops / budget)
        start = time.perf_counter()
        arch = answer_within(bundle.policy, budget)
        live_ms.append(1000 * (time.perf_counter() - start))
        assert space.flops(arch) <= budget, (space.flops(arch), budget)
        live_use.append(space.flops(arch) / budget)
        logits = bundle.policy.log_probabilities_of([budget])
        plain = space.from_indices([int(values.argmax()) for values in logits])
        argmax_error.append(abs(space.flops(plain) - budget) / budget)
    nearest = nearest_errors(space, budgets)
    return {
        **({} if nearest is None else {"nearest_mean_error": round(float(nearest.mean()), 5)}),
        "budgets": len(budgets),
        "over_budget": 0,
        "answer_mean_use": round(float(np.mean(answer_use)), 5),
        "answer_least_use": round(float(np.min(answer_use)), 5),
        "live_mean_use": round(float(np.mean(live_use)), 5),
        "live_least_use": round(float(np.min(live_use)), 5),
        "argmax_mean_error": round(float(np.mean(argmax_error)), 5),
        "live_median_ms": round(float(np.median(live_ms)), 3),
        "live_p99_ms": round(float(np.percentile(live_ms, 99)), 3),
    }


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.answers", __doc__)
    parser.add_argument("--bundle", type=Path, default=CIFAR10_CNN)
    parser.add_argument("--budgets", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    rng = np.random.default_rng(options.seed)
    budgets = rng.uniform(bundle.min_flops, bundle.max_flops, options.budgets)
    result = measure(bundle, budgets)
    if not options.json:
        print(f"{bundle.name}, {result['budgets']} random budgets (seed {options.seed})")
        print(
            f"answers over budget: {result['over_budget']}\n"
            f"the bundle uses {100 * result['answer_mean_use']:.2f} % of the budget on "
            f"average (least {100 * result['answer_least_use']:.2f} %)\n"
            f"live answers use {100 * result['live_mean_use']:.2f} % "
            f"(least {100 * result['live_least_use']:.2f} %), "
            f"{result['live_median_ms']:.2f} ms median, {result['live_p99_ms']:.2f} ms p99\n"
            f"plain argmax is off by {100 * result['argmax_mean_error']:.2f} % on average"
        )
        if "nearest_mean_error" in result:
            print(f"the nearest arch there is, by {100 * result['nearest_mean_error']:.2f} %")
    provenance = {"benchmark": "answers", "bundle": bundle.name, "version": bundle.version}
    print(json.dumps({**provenance, "seed": options.seed, **result, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
