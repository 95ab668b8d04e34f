"""The bundle as a value: what it holds and what it answers. No torch."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import onnx
from pydantic import JsonValue

from models.bundle.confidence import Confidence
from models.bundle.costs import CostAnswers
from models.bundle.int8 import INT8, Int8
from models.costs.flops import flops_cost
from models.generator.answer import WITHIN, answer_within
from models.generator.policy import GeneratorPolicy
from models.images.preprocess import Preprocess
from models.onnx.graph import cut_graph, cut_graph_apart, graph_weights, present_steps
from models.onnx.graph_template import Template
from models.onnx.int8 import quantize, quantized_values
from models.space.arch import Arch
from models.space.describe import describe_arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics, Statistics, fold_norms, slice_weights

Precision = Literal["fp32", "int8"]
"""In what subnets compute."""
STATISTICS = "statistics.safetensors"
SHARED = "shared"
"""In place of an arch's id: statistics of the widest channels, of which archs take the first."""


@dataclass(frozen=True)
class FrontierRow:
    """What is answered at a budget, and how often it is right (None: not measured).

    agreement: of int8, how often it answers what full precision does.
    """

    budget_flops: float
    arch: Arch
    flops: int
    params: int
    held_out_accuracy: float | None
    test_accuracy: float | None
    agreement: float | None = None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle. Immutable; arrays are shared, not copied.

    answers: the archs that may be answered, ascending, each with the budget at which it begins.
    Without BatchNorm, or where all archs share its statistics, there may be no answers: then the
    generator is asked, and any arch can be answered. card: what the bundle was made from and is
    good for. costs: what it answers to budgets of other costs than FLOPs, by their name.
    confidence: how sure its subnets are; None: it was not fitted. int8: what its answers need to
    run in 8-bit integers. precision: in what its subnets compute (``at``).
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
    int8: Int8 | None = None
    precision: Precision = "fp32"

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
            how, here = {
                "fp32": ("trainer.confidence", ""),
                "int8": ("trainer.quantize", " in int8"),
            }[self.precision]
            raise ValueError(
                f"{self.name} does not know how sure it is{here}; fit that on held-out images: "
                f"python -m {how}"
            )
        pair = self.confidence.pair(budget_flops)
        return None if pair is None else (self.listed[pair[0]], self.listed[pair[1]])

    def archs(self) -> tuple[Arch, ...]:
        """The stored answers, each once; where there are none, the frontier's archs."""
        listed = [arch for _, arch in self.answers] or [row.arch for row in self.frontier]
        return tuple(dict.fromkeys(listed))

    def answerable(self) -> tuple[Arch, ...]:
        """All that may be answered to budgets of any cost, where answers are stored."""
        of_costs = (arch for cost in self.costs.values() for arch in cost.archs())
        return tuple(dict.fromkeys([*self.archs(), *of_costs]))

    def at(self, precision: Precision) -> Bundle:
        """The same bundle with subnets that compute in ``precision``; accuracies are their own.

        Raises ValueError unless the bundle holds that for all that it answers.
        """
        if precision == self.precision:
            return self
        assert self.precision == "fp32", "what is in 8 bits stays so"
        how = "python -m models quantize BUNDLE --data PHOTOS --out NEW"
        if self.int8 is None:
            raise ValueError(f"{self.name} holds no int8; make a bundle that does: {how}")
        every = self.answerable()
        known = [arch for arch in every if self.space.arch_id(arch) in self.int8.ranges]
        if len(known) < len(every):
            raise ValueError(
                f"{self.name} holds int8 for {len(known)} of the {len(every)} subnets that it "
                f"answers; quantize it again: {how}"
            )

        def own(row: FrontierRow) -> FrontierRow:
            assert self.int8 is not None
            found = self.int8.rows.get(self.space.arch_id(row.arch))
            right, agrees = (found.accuracy, found.agreement) if found else (None, None)
            return replace(row, held_out_accuracy=None, test_accuracy=right, agreement=agrees)

        return replace(
            self,
            precision=precision,
            frontier=tuple(own(row) for row in self.frontier),
            confidence=self.int8.confidence,
        )

    @property
    def trained_archs(self) -> tuple[Arch, ...]:
        """The only archs that were trained, by what its run says (``trainer.run --arch``).

        Empty where all of the space were.
        """
        told: object = self.provenance
        for key in ("trained_with", "recipe", "sampler_options", "archs"):
            told = told.get(key) if isinstance(told, Mapping) else None
        return tuple(map(self.space.arch_from_json, told)) if isinstance(told, list) else ()

    @property
    def measured_on(self) -> JsonValue:
        """On what the accuracies of the frontier were measured; None: that is not known."""
        if self.precision == "int8":
            assert self.int8 is not None
            return self.int8.measured_on
        return self.provenance.get("data")

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
        if self.precision == "int8":
            model = quantize(model, self.int8_ranges(arch))
        onnx.helper.set_model_props(model, self.metadata(arch))
        return model

    def int8_ranges(self, arch: Arch) -> np.ndarray:
        """Of the activations of an arch. Raises ValueError for one that has none."""
        assert self.int8 is not None
        key = self.space.arch_id(arch)
        if key not in self.int8.ranges:
            raise ValueError(
                f"subnet {key} of {self.name} has no int8; only the {len(self.int8.ranges)} archs "
                "that the bundle answers do"
            )
        return self.int8.ranges[key]

    def describe(self, arch: Arch) -> dict[str, object]:
        """All that is needed to use a subnet without this project, for JSON.

        ``preprocess``: all numbers of the way from a file to what it reads (``Preprocess.steps``,
        ``docs/export.md``). ``labels``: of the logits, in their order.
        """
        resolution = self.space.resolution
        steps = self.preprocess.steps(resolution(arch), resolution(self.space.largest))
        return {
            **describe_arch(self.space, arch),
            "model": {
                "name": self.name,
                "version": self.version,
                "precision": self.precision,
            },
            "labels": list(self.labels),
            "preprocess": steps,
        }

    def metadata(self, arch: Arch) -> dict[str, str]:
        """``describe`` as the texts that files of other formats can hold: all but texts as JSON."""
        described = self.describe(arch).items()
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in described}

    def graph_weights(self, arch: Arch) -> dict[str, np.ndarray]:
        """The arrays that the subnet's graph reads in fp32, by name (``models.onnx.graph``)."""
        assert self.precision == "fp32", "in 8 bits a graph has its weights inside"
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


def check_int8(bundle: Bundle) -> None:
    """Raises ValueError for ranges of no answer, or that are not those of its arch's values."""
    assert bundle.int8 is not None
    by_id = {bundle.space.arch_id(arch): arch for arch in bundle.answerable()}
    for key, ranges in bundle.int8.ranges.items():
        if key not in by_id:
            raise ValueError(f"{INT8}: {key} is not a subnet that is answered")
        steps = present_steps(bundle.template, bundle.space, by_id[key])
        shape = (len(quantized_values(step.proto for step in steps)), 2)
        if ranges.shape != shape or (ranges[:, 0] > ranges[:, 1]).any():
            raise ValueError(f"{INT8}: {key} is not the ranges of its {shape[0]} values")


def _present_norms(space: SearchSpace, arch: Arch) -> list[str]:
    return [n.name for n in space.norms if n.block is None or n.block.present(arch)]
