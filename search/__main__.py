"""Search a trained supernet for the best subnet within a budget, beside its generator's answer.

    python -m search evolutionary models/zoo/cifar10-cnn --flops 8M --data data/cifar10
    python -m search random runs/digits --flops 0.5M --data digits --evaluations 30

Archs have the supernet's weights and BatchNorm statistics of their own, and are tried on held-out
images. Test images are for the report alone. With --out every arch that was tried is a line of a
file, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from models.command import command_parser, tells_mistakes
from models.space.quantity import parse_flops
from search.evolutionary import evolutionary_search
from search.log import TriedArchs
from search.random_search import random_search
from search.supernet import Supernet, open_supernet
from trainer.command import check_threads

SEARCHES = {"random": random_search, "evolutionary": evolutionary_search}
"""Name -> search."""


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake of the user's, 130 when stopped by Ctrl-C."""
    parser = command_parser("search", __doc__)
    parser.add_argument("search", choices=SEARCHES)
    parser.add_argument("supernet", type=Path, metavar="BUNDLE|RUN")
    parser.add_argument("--flops", required=True, help="budget: multiply-adds, such as 8M")
    parser.add_argument("--data", required=True, help="the data that it was trained on")
    parser.add_argument("--evaluations", type=int, default=60, help="archs to try (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of torch (default: what torch takes)"
    )
    parser.add_argument(
        "--out", type=Path, help="file that keeps the archs that were tried, to go on from"
    )
    options = parser.parse_args(arguments)
    if options.evaluations < 1:
        raise ValueError(f"--evaluations is {options.evaluations}; try 1 or more")
    check_threads(options.threads)
    if options.threads:
        torch.set_num_threads(options.threads)
    budget = parse_flops(options.flops)
    result = compared(open_supernet(options.supernet, options.data), budget, options)
    print(json.dumps(result) if options.json else in_words(result))
    return 0


def compared(
    supernet: Supernet, budget_flops: float, options: argparse.Namespace
) -> dict[str, object]:
    """What the search finds and the generator answers. Raises ValueError below the smallest."""
    space = supernet.net.space
    budget_flops = min(budget_flops, space.max_flops)  # more than that no subnet uses
    answer = supernet.answer(budget_flops)  # refuses a budget that nothing keeps
    settings = {
        "supernet": str(options.supernet),
        "version": supernet.version,
        "data": options.data,
        "search": options.search,
        "flops": budget_flops,
        "seed": options.seed,
    }
    tried = TriedArchs(space, supernet.accuracy, options.out, settings)
    rng = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()
    found = SEARCHES[options.search](space, budget_flops, tried, options.evaluations, rng)
    seconds = time.monotonic() - started
    rows = {
        name: {
            "flops": space.flops(arch),
            "held_out_accuracy": tried.scores.get(arch) or supernet.accuracy(arch),
            "test_accuracy": supernet.accuracy(arch, test=True),
            "arch": space.arch_to_json(arch),
        }
        for name, arch in (("search", found), ("generator", answer))
    }
    images = len(supernet.calibration) * len(supernet.calibration[0])
    return {
        "search": options.search,
        "budget_flops": budget_flops,
        "evaluations": len(tried.asked),
        "seconds": round(seconds, 1),
        "calibration_images": images,
        "found": rows["search"],
        "generator": rows["generator"],
    }


def in_words(result: dict[str, object]) -> str:
    """A table for a person."""
    lines = [f"{'':10} {'MFLOPs':>8} {'held-out %':>11} {'test %':>7}"]
    for name in ("found", "generator"):
        row = result[name]
        assert isinstance(row, dict)
        lines.append(
            f"{name:10} {row['flops'] / 1e6:8.2f} {100 * row['held_out_accuracy']:11.2f} "
            f"{100 * row['test_accuracy']:7.2f}"
        )
    lines.append(f"{result['evaluations']} archs tried in {result['seconds']} s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
