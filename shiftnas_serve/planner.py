"""Planner: from the budgets of a request to the subnet that answers it."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from models.bundle.folder import Bundle
from models.space.arch import Arch
from shiftnas_serve.budgets import BUDGET_KINDS, Moment, may_degrade
from shiftnas_serve.frames import arch_indices, arch_key
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.settings import Settings

_REMEMBERED = 4096
_LATENCY_STEPS = 64
# Where two bounds are equal, it is not the latency budget that made the subnet smaller.
_IN_TURN = sorted(BUDGET_KINDS, key=lambda kind: kind.degrades)


@dataclass(frozen=True)
class Subnet:
    """All that an answer says about a subnet, worked out once. ``side``: of its images."""

    arch: Arch
    key: bytes
    id: str
    flops: int
    params: int
    side: int
    described: str
    """As JSON: id, flops, params, arch."""


@dataclass(frozen=True)
class Plan:
    """A subnet and what was asked for. degraded: latency, not FLOPs, made it smaller.

    shrinks: a smaller subnet may answer when others wait, as a latency budget allows.
    """

    subnet: Subnet
    asked: Mapping[str, float]
    degraded: bool
    shrinks: bool


class Planner:
    """The same FLOPs budget gives the same subnet on every replica.

    A latency budget also looks at this server's clock; in the end a worker looks at its queue.
    """

    def __init__(self, bundle: Bundle, default_flops: float | None) -> None:
        self._bundle = bundle
        self._default = default_flops
        self._known: OrderedDict[str, Subnet] = OrderedDict()
        self._of_arch: dict[Arch, Subnet] = {}
        for arch in bundle.archs():
            self._subnet(arch)
        # Where answers are not stored, each costs the generator some milliseconds.
        self._answer = lru_cache(_REMEMBERED)(self._decoded)
        self._steps = latency_steps(bundle)
        self.latency: LatencyTable | None = None

    def plan(self, asked: Mapping[str, float], elapsed_ms: float) -> Plan:
        """The largest subnet that keeps every budget. Raises OutOfRange when none does.

        ``asked``: values by the name of their kind, as parsed.
        """
        assert self.latency is not None, "planning begins when a worker has measured its latency"
        space = self._bundle.space
        moment = Moment(self._bundle.min_flops, space.max_flops, self.latency, elapsed_ms)
        bound = float(space.max_flops)
        if "flops" not in asked and self._default is not None:
            bound = min(bound, self._default)
        degraded = False
        for kind in _IN_TURN:
            if kind.name in asked:
                limit = kind.flops_bound(asked[kind.name], moment)
                if kind.degrades:
                    limit = self._step_below(limit)
                if limit < bound:
                    bound, degraded = limit, kind.degrades
        subnet = self._answer(bound)
        assert subnet.flops <= bound, "an answer is never over budget"
        return Plan(subnet, dict(asked), degraded, shrinks=may_degrade(asked))

    def served(self, plan: Plan, key: bytes) -> Plan:
        """The plan as it was carried out: by the subnet of this key (``arch_key``)."""
        if key == plan.subnet.key:
            return plan
        assert plan.shrinks, "only a latency budget makes a subnet smaller"
        arch = self._bundle.space.from_indices(arch_indices(key))
        return replace(plan, subnet=self._subnet(arch), degraded=True)

    def subnet(self, subnet_id: str) -> Subnet | None:
        """The subnet behind an id that this server has answered or can list."""
        return self._known.get(subnet_id)

    def _decoded(self, bound: float) -> Subnet:
        return self._subnet(self._bundle.answer(bound))

    def _step_below(self, bound: float) -> float:
        return self._steps[max(bisect_right(self._steps, bound) - 1, 0)]

    def _subnet(self, arch: Arch) -> Subnet:
        subnet = self._of_arch.get(arch)
        if subnet is None:
            subnet = self._of_arch[arch] = describe(self._bundle, arch)
        self._known[subnet.id] = subnet
        self._known.move_to_end(subnet.id)
        while len(self._known) > _REMEMBERED:
            _, forgotten = self._known.popitem(last=False)
            del self._of_arch[forgotten.arch]
        return subnet


def latency_steps(bundle: Bundle) -> list[float]:
    """The FLOPs bounds that latency budgets are rounded down to.

    They change with every millisecond, and would else name subnets that nobody has built.
    """
    low, high = bundle.min_flops, bundle.max_flops
    return [low + (high - low) * i / _LATENCY_STEPS for i in range(_LATENCY_STEPS + 1)]


def describe(bundle: Bundle, arch: Arch) -> Subnet:
    """Work out what answers say about a subnet."""
    space = bundle.space
    identity, flops, params = space.arch_id(arch), space.flops(arch), space.params(arch)
    described = json.dumps(
        {"id": identity, "flops": flops, "params": params, "arch": space.arch_to_json(arch)},
        separators=(",", ":"),
    )
    key = arch_key(space.indices(arch).tolist())
    return Subnet(arch, key, identity, flops, params, space.resolution(arch), described)


def check_budgets(bundle: Bundle, settings: Settings) -> None:
    """Raises ValueError when a budget that is set is below the bundle's smallest subnet."""
    named = [("pinned_flops", budget) for budget in settings.pinned_flops]
    if settings.default_flops is not None:
        named.append(("default_flops", settings.default_flops))
    for name, budget in named:
        if budget < bundle.min_flops:
            raise ValueError(
                f"{name} is {budget:,.0f}; the smallest subnet of {bundle.name} has "
                f"{bundle.min_flops:,}"
            )
