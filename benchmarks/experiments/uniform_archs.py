"""Figure 2 of the paper: which FLOPs do archs have whose decisions are drawn uniformly?"""

from __future__ import annotations

import numpy as np

from benchmarks.experiments.experiment import AbstractExperiment
from benchmarks.parts.lines import Row
from models.space.search_space import SearchSpace
from models.spaces import get_space

SPACES = ("nano-cnn", "cifar-cnn", "cifar-vit", "vit-tiny", "attentivenas")
ARCHS, BINS = 100_000, 20
BARS = " ▁▂▃▄▅▆▇█"


class UniformArchs(AbstractExperiment):
    """No training: everything is in ``setup``."""

    trains = False

    def setup(self) -> Row:
        return {name: _histogram(get_space(name)) for name in SPACES}

    def table(self, setup: Row, results: list[Row]) -> str:
        lines = [
            "| space | smallest to largest | in the middle half, % | outer fifths, % | skew |",
            "|---|---|--:|--:|--:|",
        ]
        for name in SPACES:
            found = setup[name]
            counts = np.array(found["counts"])
            share = 100 * counts / counts.sum()
            top = counts.max()
            bars = "".join(BARS[round(8 * count / top)] for count in counts)
            middle = share[BINS // 4 : BINS - BINS // 4].sum()
            outer = share[: BINS // 5].sum() + share[BINS - BINS // 5 :].sum()
            (skew,) = found["skew"]
            lines.append(f"| {name} | `{bars}` | {middle:.1f} | {outer:.1f} | {skew:+.2f} |")
        return "\n".join(lines)


def uniform_flops(space: SearchSpace, count: int, rng: np.random.Generator) -> np.ndarray:
    """FLOPs of so many archs, each decision drawn on its own."""
    columns = [rng.integers(len(decision.choices), size=count) for decision in space.decisions]
    return space.flops_rule.batch(np.stack(columns, axis=1))


def _histogram(space: SearchSpace) -> dict[str, list[float]]:
    """Counts in even bins from the smallest subnet to the largest."""
    flops = uniform_flops(space, ARCHS, np.random.default_rng(0))
    counts, _ = np.histogram(flops, BINS, (space.min_flops, space.max_flops))
    skew = float(((flops - flops.mean()) ** 3).mean() / flops.std() ** 3)
    return {"counts": counts.tolist(), "skew": [skew]}
