"""What archs reach that train alone: the curve that regret is measured against."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.experiments.experiment import RESULTS_NAME, SETUP_NAME, kept_setup
from benchmarks.parts.lines import Row, read_lines
from trainer.samplers.scored.regret import lower_hull

OWN = ("scale", "epochs", "data")
"""What two experiments have to share."""


def alone_curve(ranking: Path, setup: Row) -> Callable[[float], float] | None:
    """FLOPs -> test loss of an arch that trains alone; None where that is not known.

    ranking: the folder of the experiment of that name, whose runs have to be as long and on the
    same images as those of ``setup``. The curve is the lower convex hull of its archs over log
    FLOPs (means over seeds). Beyond the first and the last it goes straight on.
    """
    results = ranking / RESULTS_NAME
    if not results.is_file() or not (ranking / SETUP_NAME).is_file():
        return None
    its = kept_setup(ranking)
    if any(its.get(name) != setup.get(name) for name in OWN):
        return None
    found: dict[int, list[float]] = defaultdict(list)
    for record in read_lines(results):
        if record["case"].startswith("alone-"):
            (row,) = record["rows"]
            found[row["flops"]].append(row["test_loss"])
    if len(found) < 2:
        return None
    points = sorted(found.items())
    x = torch.tensor([math.log(flops) for flops, _ in points], dtype=torch.float64)
    y = torch.tensor([sum(of) / len(of) for _, of in points], dtype=torch.float64)
    below = lower_hull(x, y)

    def curve(flops: float) -> float:
        at = math.log(flops)
        right = min(max(int(torch.searchsorted(x, at)), 1), len(x) - 1)
        left = right - 1
        share = (at - float(x[left])) / float(x[right] - x[left])
        return float(below[left] + share * (below[right] - below[left]))

    return curve
