"""Planner: from the budgets of a request to the subnet that answers it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from models.arch import Arch
from models.bundle import Bundle
from shiftnas_serve.budgets import BUDGET_KINDS, Moment
from shiftnas_serve.latency import LatencyTable

_REMEMBERED = 4096


@dataclass(frozen=True)
class Plan:
    """A subnet and what was asked for. degraded: latency, not FLOPs, made it smaller."""

    arch: Arch
    id: str
    flops: int
    asked: Mapping[str, float]
    degraded: bool


class Planner:
    """The same FLOPs budget gives the same subnet on every replica.

    A latency budget also looks at this server's clock and queue.
    """

    def __init__(self, bundle: Bundle, default_flops: float | None) -> None:
        self._bundle = bundle
        self._default = default_flops
        self._known: OrderedDict[str, Arch] = OrderedDict()
        for arch in bundle.archs():
            self._remember(arch)
        self.latency: LatencyTable | None = None

    def plan(self, asked: Mapping[str, float], elapsed_ms: float, queue_ms: float) -> Plan:
        """The largest subnet that keeps every budget. Raises OutOfRange when none does.

        ``asked``: values by the name of their kind, as parsed.
        """
        assert self.latency is not None, "planning begins when a worker has measured its latency"
        space = self._bundle.space
        moment = Moment(
            space.min_flops, space.max_flops, self.latency, elapsed_ms=elapsed_ms, queue_ms=queue_ms
        )
        bound = float(space.max_flops)
        if "flops" not in asked and self._default is not None:
            bound = min(bound, self._default)
        degraded = False
        for kind in sorted(BUDGET_KINDS, key=lambda kind: kind.degrades):
            if kind.name in asked:
                limit = kind.flops_bound(asked[kind.name], moment)
                if limit < bound:
                    bound, degraded = limit, kind.degrades
        arch = self._bundle.answer(bound)
        flops = space.flops(arch)
        assert flops <= bound, "an answer is never over budget"
        return Plan(arch, self._remember(arch), flops, dict(asked), degraded)

    def arch(self, subnet_id: str) -> Arch | None:
        """The arch behind an id that this server has answered or can list."""
        return self._known.get(subnet_id)

    def _remember(self, arch: Arch) -> str:
        subnet_id = self._bundle.space.arch_id(arch)
        self._known[subnet_id] = arch
        self._known.move_to_end(subnet_id)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return subnet_id
