"""The bundle as a value: what it holds and what it answers. No torch."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from pydantic import JsonValue

from models.bundle.confidence import Confidence
from models.bundle.costs import CostAnswers
from models.costs.flops import flops_cost
from models.generator.answer import WITHIN, answer_within
from models.generator.policy import GeneratorPolicy
from models.images.preprocess import Preprocess
from models.onnx.graph import cut_graph, cut_graph_apart, graph_weights
from models.onnx.graph_template import Template
from models.space.arch import Arch
from models.space.describe import describe_arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics, Statistics, fold_norms, slice_weights

STATISTICS = "statistics.safetensors"
SHARED = "shared"
"""In place of an arch's id: statistics of the widest channels, of which archs take the first."""


@dataclass(frozen=True)
class FrontierRow:
    """What is answered at a budget, and how often it is right (None: not measured)."""

    budget_flops: float
    arch: Arch
    flops: int
    params: int
    held_out_accuracy: float | None
    test_accuracy: float | None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle. Immutable; arrays are shared, not copied.

    answers: the archs that may be answered, ascending, each with the budget at which it begins.
    Without BatchNorm, or where all archs share its statistics, there may be no answers: then the
    generator is asked, and any arch can be answered. card: what the bundle was made from and is
    good for. costs: what it answers to budgets of other costs than FLOPs, by their name.
    confidence: how sure its subnets are; None: it was not fitted.
    """

    name: str
    version: str
    space: SearchSpace
    preprocess: Preprocess
    labels: tuple[str, ...]
    groups: tuple[int, ...]
    frontier: tuple[FrontierRow, ...]
    answers: tuple[tuple[float, Arch], ...]
    weights: Mapping[str, np.ndarray]
    generator: Mapping[str, np.ndarray]
    statistics: Mapping[str, np.ndarray]
    template: Template
    provenance: Mapping[str, JsonValue]
    card: str = ""
    costs: Mapping[str, CostAnswers] = field(default_factory=dict)
    confidence: Confidence | None = None

    @property
    def min_flops(self) -> int:
        """Of the smallest subnet that it answers, which need not be the smallest of its space."""
        return self.space.flops(self.answers[0][1]) if self.answers else self.space.min_flops

    @property
    def max_flops(self) -> int:
        return self.space.max_flops

    @cached_property
    def policy(self) -> GeneratorPolicy:
        return GeneratorPolicy(flops_cost(self.space), self.generator)

    def answer(self, budget_flops: float) -> Arch:
        """The arch for a budget: ``space.flops(arch) <= budget_flops`` always.

        Where answers to a fine grid of budgets are stored (always where BatchNorm's statistics
        exist for those archs only), a budget gets the largest of them that it allows. Elsewhere the
        generator decides, unless archs of the frontier that were measured are as near to the budget
        as its own would be: then the most accurate of them. Raises ValueError below the smallest
        subnet.
        """
        if not budget_flops >= self.min_flops:
            raise ValueError(
                f"a budget of {budget_flops:,.0f} FLOPs is below the smallest subnet of "
                f"{self.name}: budgets start at {self.min_flops:,} FLOPs, and from "
                f"{self.max_flops:,} on the largest answers"
            )
        if self.answers:
            index = bisect_right(self._from_budgets, budget_flops) - 1
            return self.answers[max(index, 0)][1]
        near = [
            row
            for row in self.frontier
            if row.held_out_accuracy is not None
            and (1 - WITHIN) * budget_flops <= row.flops <= budget_flops
        ]
        if near:
            return max(near, key=lambda row: row.held_out_accuracy or 0.0).arch
        arch = answer_within(self.policy, budget_flops)
        assert self.space.flops(arch) <= budget_flops
        return arch

    def pair(self, budget_flops: float) -> tuple[Arch, Arch] | None:
        """Who shares a budget: a first arch, and a larger one for images that it is not sure of.

        The sum of their FLOPs is within the budget, always. None where one arch alone is better.
        ``math.inf``: without bound. Raises ValueError where the bundle has no confidence.
        """
        if self.confidence is None:
            raise ValueError(
                f"{self.name} does not know how sure it is; fit that on held-out images: "
                "python -m trainer.confidence"
            )
        pair = self.confidence.pair(budget_flops)
        return None if pair is None else (self.listed[pair[0]], self.listed[pair[1]])

    def archs(self) -> tuple[Arch, ...]:
        """The stored answers, each once; where there are none, the frontier's archs."""
        listed = [arch for _, arch in self.answers] or [row.arch for row in self.frontier]
        return tuple(dict.fromkeys(listed))

    @cached_property
    def listed(self) -> dict[int, Arch]:
        """``archs`` by their FLOPs."""
        return {self.space.flops(arch): arch for arch in self.archs()}

    def arch_statistics(self, arch: Arch) -> Statistics:
        """BatchNorm statistics of an arch. Raises ValueError for one that was not calibrated."""
        if not self.space.norms:
            return {}
        if SHARED in self.statistics:
            shared = unpack_shared(self.space, self.statistics)
            return shared.of(self.space, arch, slice_weights(self.space, arch, self.weights))
        key = self.space.arch_id(arch)
        if key not in self.statistics:
            raise ValueError(
                f"subnet {key} of {self.name} has no BatchNorm statistics; only the "
                f"{len(self.statistics)} archs that the bundle answers were calibrated"
            )
        return unpack_statistics(self.space, arch, self.statistics[key])

    def subnet_weights(self, arch: Arch) -> dict[str, np.ndarray]:
        """The weights of a subnet as deployed: sliced, BatchNorm folded, float32."""
        sliced = slice_weights(self.space, arch, self.weights)
        return fold_norms(self.space, sliced, self.arch_statistics(arch))

    def build_onnx(self, arch: Arch) -> onnx.ModelProto:
        """The subnet as a self-contained ONNX model: images -> logits; ``metadata`` is inside."""
        model = cut_graph(self.template, self.space, arch, self.subnet_weights(arch))
        onnx.helper.set_model_props(model, self.metadata(arch))
        return model

    def describe(self, arch: Arch) -> dict[str, object]:
        """All that is needed to use a subnet without this project, for JSON.

        ``preprocess``: all numbers of the way from a file to what it reads (``Preprocess.steps``,
        ``docs/export.md``). ``labels``: of the logits, in their order.
        """
        resolution = self.space.resolution
        steps = self.preprocess.steps(resolution(arch), resolution(self.space.largest))
        return {
            **describe_arch(self.space, arch),
            "model": {"name": self.name, "version": self.version},
            "labels": list(self.labels),
            "preprocess": steps,
        }

    def metadata(self, arch: Arch) -> dict[str, str]:
        """``describe`` as the texts that files of other formats can hold: all but texts as JSON."""
        described = self.describe(arch).items()
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in described}

    def graph_weights(self, arch: Arch) -> dict[str, np.ndarray]:
        """The arrays that the subnet's graph reads, by name (``models.onnx.graph``)."""
        return graph_weights(self.template, self.space, arch, self.subnet_weights(arch))

    def build_onnx_apart(self, arch: Arch, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The subnet as ONNX without its weights: see ``models.onnx.graph.cut_graph_apart``."""
        return cut_graph_apart(self.template, self.space, arch, arrays)

    @cached_property
    def _from_budgets(self) -> list[float]:
        return [budget for budget, _ in self.answers]


def pack_shared(space: SearchSpace, shared: SharedStatistics) -> dict[str, np.ndarray]:
    """Statistics of all archs as a bundle stores them."""
    packed = {SHARED: pack_statistics(space, space.largest, shared.norms)}
    return packed | {f"{SHARED}.{conv}": centre for conv, centre in shared.centres.items()}


def unpack_shared(space: SearchSpace, packed: Mapping[str, np.ndarray]) -> SharedStatistics:
    """The reverse. Raises ValueError where an array has another shape than the space's."""
    norms = unpack_statistics(space, space.largest, packed[SHARED])
    centres = {k.removeprefix(f"{SHARED}."): v for k, v in packed.items() if k != SHARED}
    for conv, centre in centres.items():
        read = space.weight.get(f"{conv}.weight")
        if read is None or centre.shape != read.shape_at(space.largest)[1:2]:
            raise ValueError(f"{STATISTICS}: {SHARED}.{conv} has shape {centre.shape}, not its own")
    return SharedStatistics(norms, centres)


def pack_statistics(space: SearchSpace, arch: Arch, statistics: Statistics) -> np.ndarray:
    """An arch's statistics as one array, float32 (2, sum of channels): means, variances."""
    names = _present_norms(space, arch)
    parts = [np.concatenate([statistics[n][row] for n in names]) for row in (0, 1)]
    return np.stack(parts).astype(np.float32)


def unpack_statistics(space: SearchSpace, arch: Arch, packed: np.ndarray) -> Statistics:
    """The reverse. Raises ValueError if the number of channels is not the arch's."""
    sizes = {n.name: n.size(arch) for n in space.norms if n.block is None or n.block.present(arch)}
    if packed.shape != (2, sum(sizes.values())):
        raise ValueError(
            f"{STATISTICS}: {space.arch_id(arch)} has shape {packed.shape}, "
            f"its arch needs {(2, sum(sizes.values()))}"
        )
    ends = np.cumsum(list(sizes.values()))[:-1]
    means, variances = (np.split(row, ends) for row in packed)
    return dict(zip(sizes, zip(means, variances, strict=True), strict=True))


def _present_norms(space: SearchSpace, arch: Arch) -> list[str]:
    return [n.name for n in space.norms if n.block is None or n.block.present(arch)]
