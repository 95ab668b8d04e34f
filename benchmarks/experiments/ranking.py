"""Figure 6 of the paper: do inherited weights rank archs as training them alone does?

25 random archs are measured with the weights of two supernets, one trained with the paper's
``shift`` and one with uniform budgets, and each trains alone for as many epochs. The control is the
order of their FLOPs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from benchmarks.experiments.experiment import AbstractExperiment, Case
from benchmarks.experiments.ladder import alone
from benchmarks.experiments.table import by_case
from benchmarks.parts.lines import Row
from models.generator.network import ArchitectureGenerator
from models.space.arch import Arch
from trainer.samplers.candidates.base import arch_between

ARCHS = 25
SUPERNETS = ("uniform-budget", "shift")
FLOPS = "FLOPs alone"


class Ranking(AbstractExperiment):
    """Archs are spread evenly over the range of FLOPs, random within each step."""

    def setup(self) -> Row:
        rng = torch.Generator().manual_seed(0)
        edges = np.linspace(self.space.min_flops, self.space.max_flops, ARCHS + 1)
        found = [
            arch_between(self.space, round(low), round(high), rng) for low, high in pairwise(edges)
        ]
        return {"archs": json.loads(json.dumps([self.space.arch_to_json(a) for a in found]))}

    def cases(self, setup: Row) -> Iterator[Case]:
        for seed in self.seeds:
            for name in SUPERNETS:
                recipe = self.base.replace(name=name, sampler=name, seed=seed)
                yield Case(name, recipe)
            for place, arch in enumerate(self._archs(setup)):
                yield Case(f"alone-{place}", alone(self.base, arch).replace(seed=seed), (arch,))

    def archs(self, setup: Row, generator: ArchitectureGenerator) -> list[Arch]:
        return self._archs(setup)

    def _archs(self, setup: Row) -> list[Arch]:
        return [self.space.arch_from_json(document) for document in setup["archs"]]

    def table(self, setup: Row, results: list[Row]) -> str:
        found = by_case(results)
        lines = [
            "| supernet | seed | archs | Kendall's tau | Spearman's rho |",
            "|---|--:|--:|--:|--:|",
        ]
        flops = [self.space.flops(arch) for arch in self._archs(setup)]
        for name in (*SUPERNETS, FLOPS):
            runs = found.get(SUPERNETS[0] if name == FLOPS else name, {})
            for seed, run in sorted(runs.items()):
                pairs = [
                    (
                        flops[place] if name == FLOPS else _right(run, place),
                        _right(found[f"alone-{place}"][seed], 0),
                    )
                    for place in range(ARCHS)
                    if seed in found.get(f"alone-{place}", {})
                ]
                if len(pairs) < 3:
                    continue
                inherited, trained = zip(*pairs, strict=True)
                tau = float(kendalltau(inherited, trained).statistic)
                rho = float(spearmanr(inherited, trained).statistic)
                lines.append(f"| {name} | {seed} | {len(pairs)} | {tau:.2f} | {rho:.2f} |")
        return "\n".join(lines)


def _right(run: Row, place: int) -> float:
    return run["rows"][place]["test_accuracy"]
