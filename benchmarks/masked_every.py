"""What do masked steps buy: every m-th step masked, the others sliced, at equal training time.

    python -m benchmarks.masked_every --out runs/masked_every
    python -m benchmarks.masked_every --out runs/m --every 1 8 --set epochs=10

A masked step costs a whole supernet and tells the generator which archs are good; a sliced step
costs its subnet. The first m trains for the recipe's epochs, every other for as many as cost the
same processor time (``benchmarks.samplers`` has the details). Compared is the mean accuracy over
the recipe's budgets, on the test images, and paired with the first m's of the same seed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.samplers import build_parser, measure


def mean_accuracies(folder: Path) -> tuple[float, float, float]:
    """Percent: mean over the budgets, at the smallest, at the largest."""
    rows = json.loads((folder / "frontier.json").read_text())
    accuracies = [100 * row["test_accuracy"] for row in rows]
    return statistics.mean(accuracies), accuracies[0], accuracies[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = build_parser("masked_every", __doc__)
    parser.add_argument("--every", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="M")
    options = parser.parse_args(arguments)
    variants = {f"m={m}": [f"generator.masked_every={m}"] for m in options.every}
    try:
        result = measure(options, variants)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first = next(iter(variants))
    table: dict[str, list[tuple[float, float, float]]] = {
        name: [mean_accuracies(options.out / f"{name}-{seed}") for seed in options.seeds]
        for name in variants
    }
    print(f"test accuracy, %, over seeds {options.seeds}; difference to {first}, paired by seed")
    for name, runs in table.items():
        means = [run[0] for run in runs]
        gains = [run[0] - other[0] for run, other in zip(runs, table[first], strict=True)]
        print(
            f"  {name:6} mean {statistics.mean(means):6.2f} ({min(means):.2f} to {max(means):.2f})"
            f"  smallest {statistics.mean(run[1] for run in runs):6.2f}"
            f"  largest {statistics.mean(run[2] for run in runs):6.2f}"
            f"  difference {statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})"
        )
    print(json.dumps({"benchmark": "masked_every", "test_accuracy": table, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
