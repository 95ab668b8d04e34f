"""Planner: the one place that chooses the subnet that answers.

``plan`` turns the budgets of a request into the largest subnet that keeps them. ``within`` makes it
smaller when its turn comes, if a latency budget allows that and others wait: a job that came before
a burst then makes room for the burst.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import msgspec
import numpy as np

from models.bundle.folder import Bundle
from models.space.arch import Arch
from shiftnas_serve.budgets import BUDGET_KINDS, Confidence, Moment, may_degrade
from shiftnas_serve.latency import FIRST_BUILD_MS, MARGIN, LatencyTable

LATENCY = "latency_ms"
"""The cost by which a bundle may answer latency budgets."""

_REMEMBERED = 4096
_LATENCY_STEPS = 64
# How fast the estimate of what a build takes follows what is seen.
_STEP = 0.3


class _Bound(NamedTuple):
    """FLOPs that budgets leave; ``inf``: no bound.

    ``alone``: for one subnet; a latency budget that has time for the largest does not bound it.
    ``both``: for two together.
    """

    alone: float
    both: float


@dataclass(frozen=True, eq=False, slots=True)
class Subnet:
    """All that an answer says about a subnet, worked out once.

    ``arch``: its choices, as JSON has them. ``value``: the arch. ``side``: of its images. ``pace``:
    the FLOPs of that answer to a latency budget which takes as long, by the bundle's table of
    milliseconds; its own where the bundle has no table.
    """

    id: str
    flops: int
    params: int
    arch: Mapping[str, object]
    value: Arch
    side: int
    pace: float


class Plan(msgspec.Struct, frozen=True):
    """A subnet, and what was asked for: budgets by the name of their kind.

    ``degraded``: a latency budget, not FLOPs, made it smaller. ``shrinks``: a smaller subnet may
    answer when others wait, as a latency budget allows. ``confidence``: how sure the answer must
    be, if that was asked for, and ``second`` the larger subnet that answers where it is not, if the
    budget has room for both. ``spent_flops``: by another subnet, before.
    """

    subnet: Subnet
    asked: Mapping[str, float]
    degraded: bool
    shrinks: bool
    confidence: float | None = None
    second: Subnet | None = None
    spent_flops: int = 0

    def after(self) -> Plan:
        """What is next for an image whose answer is not sure: its second subnet, as it is."""
        assert self.second is not None
        return Plan(
            self.second,
            self.asked,
            self.degraded,
            shrinks=False,
            confidence=self.confidence,
            spent_flops=self.subnet.flops,
        )


class Planner:
    """Of one bundle. The same FLOPs budget gives the same subnet on every replica.

    ``latency``: what a subnet takes on this machine; it follows what is observed. ``is_resident``:
    whether there is a session. Thread-safe.
    """

    def __init__(
        self,
        bundle: Bundle,
        default_flops: float | None,
        latency: LatencyTable,
        is_resident: Callable[[Arch], bool] = lambda arch: True,
    ) -> None:
        self._bundle, self._default = bundle, default_flops
        self._min_flops, self._max_flops = bundle.min_flops, bundle.max_flops  # worked out once
        self._is_resident = is_resident
        self.latency = latency
        self._build_ms = FIRST_BUILD_MS
        self._lock = Lock()
        self._by_id: OrderedDict[str, Subnet] = OrderedDict()
        self._of_arch: dict[Arch, Subnet] = {}
        self._answers: OrderedDict[float, Subnet] = OrderedDict()
        for arch in bundle.archs():
            self._subnet(arch)
        self._knows_ms = LATENCY in bundle.costs
        if self._knows_ms:
            # ascending in milliseconds and in FLOPs (models.retarget)
            some = [self._subnet(arch) for arch in bundle.costs[LATENCY].archs()]
            self._bounds = [float(subnet.flops) for subnet in some]
        else:
            self._bounds = latency_bounds(bundle)
            some = [self._answer(bound) for bound in self._bounds]
        by_flops = {subnet.flops: subnet for subnet in some}
        self._choices: Sequence[Subnet] = [by_flops[flops] for flops in sorted(by_flops)]
        self._flops = [subnet.flops for subnet in self._choices]
        self.smallest = self._choices[0]

    def plan(self, asked: Mapping[str, float], elapsed_ms: float) -> Plan:
        """The largest subnet that keeps every budget. Raises OutOfRange when none does."""
        return self._plan(asked, self._bound(asked, elapsed_ms))

    def quick_plan(self, asked: Mapping[str, float]) -> Plan | None:
        """The plan of this moment, if it is a look-up; else the generator takes milliseconds.

        Raises OutOfRange as ``plan`` does.
        """
        bound = self._bound(asked, 0.0)
        if not self._is_known(asked, bound):
            return None
        if may_degrade(asked) and not self._is_known(asked, self._bound(_lasting(asked), 0.0)):
            return None
        return self._plan(asked, bound)

    def _is_known(self, asked: Mapping[str, float], bound: _Bound) -> bool:
        """Whether its subnets are found without the generator."""
        if self._bundle.answers or min(bound.alone, self._max_flops) in self._answers:
            return True
        return self._in_time(asked, bound.alone) is not None

    def _plan(self, asked: Mapping[str, float], bound: _Bound) -> Plan:
        subnet, second = self._subnets(asked, bound)
        degraded = shrinks = may_degrade(asked)
        if degraded:  # if with all the time there is a larger one would have the last word
            first, last = self._subnets(asked, self._bound(_lasting(asked), 0.0))
            degraded = (second or subnet).flops < (last or first).flops
        return Plan(subnet, asked, degraded, shrinks, asked.get(Confidence.name), second)

    def _subnets(self, asked: Mapping[str, float], bound: _Bound) -> tuple[Subnet, Subnet | None]:
        """Who answers, and who does where that is not sure."""
        pair = self._bundle.pair(bound.both) if Confidence.name in asked else None
        if pair is not None:
            subnet, second = map(self._subnet, pair)
            assert subnet.flops + second.flops <= bound.both, "an answer is never over budget"
            return subnet, second
        found = self._in_time(asked, bound.alone)
        found = found or self._answer(min(bound.alone, self._max_flops))
        assert found.flops <= bound.alone, "an answer is never over budget"
        return found, None

    def within(self, subnet: Subnet, ms: float, *, alone: bool = False) -> Subnet:
        """The largest up to ``subnet`` that is predicted to take at most ``ms``; else the smallest.

        While others wait no session is built for it: one that is there, of a smaller subnet,
        answers instead. ``alone``: there is time to build one, if that fits into ``ms`` too.
        """
        wanted = self._largest(subnet, ms)
        if self._is_resident(wanted.value):
            return wanted
        if alone:
            wanted = self._largest(subnet, ms - self._build_ms)
        most = self.latency.flops_inferred_within(ms / MARGIN)
        place = bisect_right(self._flops, min(most, subnet.flops)) - 1
        least = wanted.flops if alone else 0
        while place >= 0 and self._flops[place] >= least:
            if self._is_resident(self._choices[place].value):
                return self._choices[place]
            place -= 1
        return wanted

    def cost_ms(self, subnet: Subnet) -> float:
        """What an image of it takes, now."""
        return self.latency.infer_ms(subnet.pace)

    def least_ms(self, plan: Plan) -> float:
        """What the image of a plan takes at least."""
        return self.cost_ms(self.within(plan.subnet, 0.0) if plan.shrinks else plan.subnet)

    def next_ms(self, plan: Plan) -> float:
        """What the second step of an image takes, with its session if there is none, at most."""
        some_ms = self.cost_ms(plan.subnet) + self.build_ms(plan.subnet.value)
        return MARGIN * some_ms + self.latency.after_ms

    def build_ms(self, arch: Arch) -> float:
        """What its session takes to build; 0 where there is one."""
        return 0.0 if self._is_resident(arch) else self._build_ms

    def built(self, build_ms: float) -> None:
        """A session was built in so long."""
        self._build_ms += _STEP * (build_ms - self._build_ms)

    def by_id(self, identity: str) -> Subnet | None:
        """The subnet behind an id that was answered here or can be listed."""
        return self._by_id.get(identity)

    def expected(self) -> list[Arch]:
        """What will probably be asked for: the stored answers, or those to latency budgets."""
        stored = self._bundle.archs() if self._bundle.answers else ()
        timed = [one.value for one in self._choices] if self._knows_ms or not stored else ()
        return list(dict.fromkeys((*stored, *timed)))

    def _bound(self, asked: Mapping[str, float], elapsed_ms: float) -> _Bound:
        knows = self._bundle.confidence is not None
        moment = Moment(self._min_flops, self._max_flops, self.latency, elapsed_ms, knows)
        alone = both = math.inf
        if "flops" not in asked and self._default is not None:
            alone = both = self._default
        for kind in BUDGET_KINDS:
            if kind.name in asked:
                limit = kind.flops_bound(asked[kind.name], moment)
                # The second of two is not begun where it might be late.
                both = min(both, limit / MARGIN if kind.degrades else limit)
                if kind.degrades:
                    limit = self._bounds[max(bisect_right(self._bounds, limit) - 1, 0)]
                    if limit >= self._max_flops:
                        continue  # there is time for the largest
                alone = min(alone, limit)
        return _Bound(alone, both)

    def _largest(self, subnet: Subnet, ms: float) -> Subnet:
        most = self.latency.flops_inferred_within(ms / MARGIN)
        if subnet.pace <= most:
            return subnet
        # With a table of milliseconds, what takes no longer may have more FLOPs.
        place = bisect_right(self._flops, min(most, subnet.flops)) - 1
        smallest = self.smallest if self.smallest.flops <= subnet.flops else subnet
        return self._choices[place] if place >= 0 else smallest

    def _in_time(self, asked: Mapping[str, float], bound: float) -> Subnet | None:
        """The answer to milliseconds that has at most so many FLOPs, where the bundle has such.

        With a FLOPs budget too: what is the bundle's answer to those alone may take longer.
        """
        if not (self._knows_ms and may_degrade(asked)):
            return None
        place = bisect_right(self._flops, bound) - 1
        return self._choices[place] if place >= 0 else None

    def _answer(self, bound: float) -> Subnet:
        found = self._answers.get(bound)
        if found is None:
            found = self._subnet(self._bundle.answer(bound))
            with self._lock:
                self._answers[bound] = found
                while len(self._answers) > _REMEMBERED:
                    self._answers.popitem(last=False)
        return found

    def _subnet(self, arch: Arch) -> Subnet:
        found = self._of_arch.get(arch) or describe(self._bundle, arch)
        with self._lock:
            found = self._of_arch.setdefault(arch, found)
            self._by_id[found.id] = found
            self._by_id.move_to_end(found.id)
            while len(self._by_id) > _REMEMBERED:
                _, forgotten = self._by_id.popitem(last=False)
                del self._of_arch[forgotten.value]
        return found


def _lasting(asked: Mapping[str, float]) -> dict[str, float]:
    """Without the budgets that depend on the moment."""
    gone = {kind.name for kind in BUDGET_KINDS if kind.degrades}
    return {name: value for name, value in asked.items() if name not in gone}


def latency_bounds(bundle: Bundle) -> list[float]:
    """The FLOPs bounds that latency budgets are rounded down to.

    They change with every millisecond, and would else name subnets that nobody has built.
    """
    low, high = bundle.min_flops, bundle.max_flops
    return [low + (high - low) * i / _LATENCY_STEPS for i in range(_LATENCY_STEPS + 1)]


def describe(bundle: Bundle, arch: Arch) -> Subnet:
    """Work out what answers say about a subnet."""
    space, pace = bundle.space, float(bundle.space.flops(arch))
    if LATENCY in bundle.costs:
        known = bundle.costs[LATENCY]
        costs, archs = zip(*known.answers, strict=True)
        pace = float(np.interp(known.cost.of(arch), costs, [space.flops(one) for one in archs]))
    return Subnet(
        id=space.arch_id(arch),
        flops=space.flops(arch),
        params=space.params(arch),
        arch=space.arch_to_json(arch),
        value=arch,
        side=space.resolution(arch),
        pace=pace,
    )


def check_budgets(
    bundle: Bundle, pinned_flops: Sequence[float], default_flops: float | None
) -> None:
    """Raises ValueError when a budget that is set is below the bundle's smallest subnet."""
    named = [("pinned_flops", budget) for budget in pinned_flops]
    if default_flops is not None:
        named.append(("default_flops", default_flops))
    for name, budget in named:
        if budget < bundle.min_flops:
            raise ValueError(
                f"{name} is {budget:,.0f}; the smallest subnet of {bundle.name} has "
                f"{bundle.min_flops:,}"
            )
