"""Reading budgets and planning: no processes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bundle.folder import Bundle
from shiftnas_serve.budgets import (
    BUDGET_KINDS,
    AbstractBudgetKind,
    BadBudget,
    FlopsBudget,
    Moment,
    OutOfRange,
    asked,
    earliest_deadline_s,
    may_degrade,
)
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.planning.planner import Planner, Subnet
from shiftnas_serve.problem import Problem


@given(st.integers(0, 10**17))
def test_integers_are_read_exactly(flops):
    assert FlopsBudget().parse(str(flops)) == flops


@given(st.decimals(0, 10**6, places=3), st.sampled_from("KMGkmg"))
def test_suffixes_scale(number, suffix):
    scale = {"k": 10**3, "m": 10**6, "g": 10**9}[suffix.lower()]
    assert FlopsBudget().parse(f"{number:f}{suffix}") == int(number * scale)


@pytest.mark.parametrize("kind", BUDGET_KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "text", [" " * 100_000 + "4", "4" + " " * 40, "\xa04", "4\x85", "4\n", "\u0664", "4" * 41]
)
def test_what_is_long_or_no_ascii_is_no_budget(kind, text):
    with pytest.raises(BadBudget) as refused:
        kind.parse(text)
    assert len(str(refused.value)) < 300
    assert kind.parse(f" {kind.example}\t") == kind.parse(kind.example)


def test_long_texts_of_budgets_are_not_remembered(monkeypatch):
    seen = []
    monkeypatch.setitem(asked._PARSERS, "flops", lambda text: seen.append(text) or 1.0)
    for text in ("4" * 41, " " * 100_000 + "4M"):
        with pytest.raises(Problem, match="longer than 40") as refused:
            asked.parse_budgets({"flops": text})
        assert refused.value.status == 400
    asked.parse_budgets({"flops": "4" * 40})
    assert seen == ["4" * 40]


def test_a_budget_is_never_read_as_more_than_was_written():
    assert FlopsBudget().parse("0." + "9" * 37 + "M") == 999_999
    assert FlopsBudget().parse("1e18") == FlopsBudget().parse("1e999") == 10**18
    assert FlopsBudget().parse("1e-999") == 0


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_any_text_is_a_number_or_a_bad_budget(text):
    for kind in BUDGET_KINDS:
        try:
            assert kind.parse(text) >= 0
        except BadBudget as error:
            assert kind.header in str(error)


every_kind = pytest.mark.parametrize("kind", BUDGET_KINDS, ids=lambda kind: kind.name)
# Of each kind, values from far below the smallest subnet to far above the largest.
VALUES = [10.0**exponent for exponent in range(-3, 19)]


def moment(bundle: Bundle, **more: float) -> Moment:
    low, high = bundle.min_flops, bundle.max_flops
    table = LatencyTable(((low, 1.0), (high, 10.0)), overhead_ms=1.0)
    return Moment(low, high, table, knows_confidence=True, **more)


def test_kinds_can_be_told_apart():
    for of in (lambda kind: kind.name, lambda kind: kind.header.lower(), lambda k: k.parameter):
        assert len({of(kind) for kind in BUDGET_KINDS}) == len(BUDGET_KINDS)


@every_kind
def test_a_kind_says_what_it_is(kind):
    assert kind.name.isidentifier()
    assert kind.parameter.isidentifier()
    assert kind.name not in {"degraded", "deadline"}  # its neighbours in an answer
    assert kind.description.strip()
    assert kind.parse(kind.example) > 0
    assert not vars(kind)  # stateless
    for text in ("", "much", "-1", "1e999999", "nan", "inf"):
        with pytest.raises(BadBudget, match=f"{kind.header}: {re.escape(repr(text))} is not"):
            kind.parse(text)


@every_kind
def test_a_bound_is_one_that_some_subnet_keeps(kind, bundle: Bundle):
    """Or the answer says what would be; and more is never less."""
    now, bounds, refused = moment(bundle), [], []
    for value in VALUES:
        try:
            bounds.append(kind.flops_bound(value, now))
        except OutOfRange as error:
            refused.append(value)
            assert kind.header in str(error)
            assert error.extra["allowed"]
            assert all(limit > 0 for limit in error.extra["allowed"].values())
    assert refused == VALUES[: len(refused)]
    assert refused or set(bounds) == {math.inf}  # one that bounds nothing
    assert bounds == sorted(bounds)
    assert bounds[0] >= bundle.min_flops
    assert bounds[-1] >= bundle.max_flops


@every_kind
def test_the_least_that_a_kind_tells_is_allowed(kind, bundle: Bundle):
    table = LatencyTable(((bundle.min_flops, 1.0001234),))
    now = Moment(bundle.min_flops, bundle.max_flops, table, knows_confidence=False)
    with pytest.raises(OutOfRange) as refused:
        kind.flops_bound(VALUES[0], now)
    for name, least in refused.value.extra["allowed"].items():
        if name.startswith("min"):
            assert f"{least}" in str(refused.value)
            assert kind.flops_bound(least, now) >= bundle.min_flops


@every_kind
def test_only_a_kind_that_degrades_depends_on_the_moment(kind, bundle: Bundle):
    value = VALUES[-1]
    busy = moment(bundle, elapsed_ms=1e12)
    same = kind.flops_bound(value, busy) == kind.flops_bound(value, moment(bundle))
    assert same or kind.degrades
    assert kind.deadline_s(1.0, 50.0) > 50.0
    assert may_degrade({kind.name: 1.0}) == kind.degrades
    assert earliest_deadline_s({kind.name: 1.0}, 50.0) == kind.deadline_s(1.0, 50.0)


def test_deadlines_come_from_the_kinds_that_have_one():
    assert earliest_deadline_s({}, 50.0) == earliest_deadline_s({"flops": 1e6}, 50.0) == math.inf
    assert earliest_deadline_s({"flops": 1e6, "latency_ms": 20.0}, 50.0) == pytest.approx(50.02)
    assert not may_degrade({})


class Soon(AbstractBudgetKind):
    """Another kind that degrades."""

    name, header, example, description = "soon", "Soon", "1", "By its end."
    degrades = True

    def parse(self, text):
        return float(text)

    def flops_bound(self, value, moment):
        return moment.min_flops

    def deadline_s(self, value, received_s):
        return received_s + value


def test_any_kind_that_degrades_does_it_and_any_deadline_counts(bundle: Bundle, monkeypatch):
    from shiftnas_serve import budgets
    from shiftnas_serve.planning import planner as planning

    kinds = (*BUDGET_KINDS, Soon())
    monkeypatch.setattr(budgets, "BUDGET_KINDS", kinds)
    monkeypatch.setattr(budgets, "_DEGRADING", {"latency_ms", "soon"})
    monkeypatch.setattr(planning, "BUDGET_KINDS", kinds)
    plan = planner(bundle).plan({"soon": 2.0}, 0)
    assert plan.shrinks
    assert plan.degraded
    assert earliest_deadline_s({"soon": 2.0}, 10.0) == 12.0


def planner(bundle: Bundle, default: float | None = None, **more) -> Planner:
    low, high = float(bundle.min_flops), float(bundle.max_flops)
    table = LatencyTable(((low, 1.0), (high, 10.0)), overhead_ms=1.0)
    return Planner(bundle, default, table, **more)


def test_a_flops_budget_alone_is_never_degraded(bundle: Bundle):
    plan = planner(bundle).plan({"flops": 1e6}, elapsed_ms=10_000)
    assert not plan.degraded
    assert not plan.shrinks
    assert plan.subnet.value == bundle.answer(1e6)


def test_a_latency_budget_takes_the_time_spent_into_account(bundle: Bundle):
    plans = planner(bundle)
    soon = plans.plan({"latency_ms": 20}, elapsed_ms=0)
    later = plans.plan({"latency_ms": 20}, elapsed_ms=14)
    assert soon.subnet.flops == bundle.max_flops
    assert not soon.degraded
    assert later.subnet.flops < soon.subnet.flops
    assert later.degraded
    assert soon.shrinks
    assert later.shrinks


def test_what_answers_is_known_by_its_id(bundle: Bundle):
    plans = planner(bundle)
    for arch in bundle.archs():
        assert plans.by_id(bundle.space.arch_id(arch)).value == arch
    assert plans.by_id("unknown") is None


def test_asking_the_generator_is_told_from_looking_up(bundle: Bundle, vit: Bundle):
    assert planner(bundle).quick_plan({"flops": 1e6}).subnet.flops <= 1e6
    vit = replace(vit, answers=())
    plans = planner(vit)
    budget = {"flops": (vit.min_flops + vit.max_flops) / 2 + 1.5}
    assert plans.quick_plan(budget) is None
    plan = plans.plan(budget, 0.0)
    assert plans.quick_plan(budget) == plan
    assert plans.quick_plan({"latency_ms": 20.0}).shrinks
    with pytest.raises(OutOfRange):
        plans.quick_plan({"flops": 1.0})


def test_a_bundle_whose_largest_answer_is_no_step_still_answers_it(bundle: Bundle):
    plans = planner(bundle)
    most = 0.97 * bundle.max_flops
    plans.latency = LatencyTable(((bundle.min_flops, 1.0), (most, 10.0)))
    assert plans.plan({"latency_ms": 20}, 0).subnet.flops == bundle.max_flops


@pytest.mark.parametrize("default", [None, 0.6])
def test_only_what_a_latency_budget_made_smaller_is_degraded(bundle: Bundle, default):
    """Its bound may be below that of another budget, and the subnet be the same."""
    low, high = bundle.min_flops, bundle.max_flops
    plans = planner(bundle, None if default is None else default * high)
    seen = set()
    for flops in (None, *np.linspace(low, high, 7)):
        other = {} if flops is None else {"flops": float(flops)}
        for latency_ms in np.linspace(2.1, 12.0, 25):
            asked = other | {"latency_ms": float(latency_ms)}
            plan = plans.plan(asked, 0.0)
            assert plan.degraded == (plan.subnet is not plans.plan(other, 0.0).subnet)
            seen.add(plan.degraded)
    assert seen == {True, False}


def test_to_tell_whether_it_is_degraded_no_generator_is_asked_on_the_way(vit: Bundle):
    vit = replace(vit, answers=())
    plans = planner(vit)
    flops = 0.9 * vit.max_flops + 0.5
    asked = {"flops": flops, "latency_ms": 4.0}
    assert plans.quick_plan(asked) is None
    plans.plan({"flops": flops}, 0.0)
    assert plans.quick_plan(asked).degraded


def test_the_tighter_of_two_budgets_binds(bundle: Bundle):
    plans = planner(bundle)
    asked = {"flops": 1e6, "latency_ms": 4.0}
    both = plans.plan(asked, elapsed_ms=0)
    for name, value in asked.items():
        alone = plans.plan({name: value}, elapsed_ms=0)
        assert both.subnet.flops <= alone.subnet.flops


def test_latency_budgets_ask_for_few_distinct_subnets(bundle: Bundle):
    plans = planner(bundle)
    asked = [plans.plan({"latency_ms": 2.5 + i / 997}, 0) for i in range(5000)]
    assert len({plan.subnet.id for plan in asked}) <= 65
    flops = [plan.subnet.flops for plan in asked]
    assert flops == sorted(flops)


def test_impossible_latency_is_out_of_range(bundle: Bundle):
    with pytest.raises(OutOfRange, match="smallest subnet"):
        planner(bundle).plan({"latency_ms": 1.5}, elapsed_ms=0)


def test_the_default_budget_holds_where_none_is_named(bundle: Bundle):
    plans = planner(bundle, default=500_000)
    assert plans.plan({}, 0).subnet.flops <= 500_000
    assert plans.plan({"flops": 1e9}, 0).subnet.flops == bundle.max_flops


def test_a_busy_server_does_not_call_a_budget_impossible(bundle: Bundle):
    plans = planner(bundle)
    for _ in range(200):
        plans.latency = plans.latency.observed(bundle.max_flops, 40.0).answered(50.0)
    assert plans.plan({"latency_ms": 3}, 0).subnet.flops == bundle.min_flops


def test_the_choice_is_the_largest_in_time_and_never_above_the_bound(bundle: Bundle):
    plans = planner(bundle)
    for bound in bundle.archs():
        subnet = plans.by_id(bundle.space.arch_id(bound))
        assert plans.within(subnet, 1000.0) is subnet
        assert plans.within(subnet, 0.0).flops == bundle.min_flops
        times_ms = np.linspace(0.5, 12, 50)
        chosen = [plans.within(subnet, ms) for ms in times_ms]
        flops = [one.flops for one in chosen]
        assert max(flops) <= subnet.flops
        assert flops == sorted(flops)
        for ms, one in zip(times_ms, chosen, strict=True):
            assert plans.cost_ms(one) <= max(ms, 1.0)


def test_while_others_wait_a_resident_subnet_answers_for_one_that_is_not_built(bundle: Bundle):
    resident = set()
    plans = planner(bundle, is_resident=resident.__contains__)
    plans.latency = LatencyTable(((bundle.min_flops, 10.0), (bundle.max_flops, 100.0)))
    some = sorted((plans.by_id(bundle.space.arch_id(a)) for a in bundle.archs()), key=flops_of)
    resident.update({some[0].value, some[3].value})
    largest = some[-1]
    assert plans.within(largest, 1000.0) is some[3]
    assert plans.within(some[2], 1000.0) is some[0]
    assert plans.within(largest, 1000.0, alone=True) is largest
    # 20 ms of building would make the largest late, not a smaller one, which is still larger than
    # what is there
    alone = plans.within(largest, 1.1 * 110.0, alone=True)
    assert some[3].flops < alone.flops < largest.flops
    for _ in range(50):
        plans.built(100.0)
    assert plans.within(largest, 1.1 * 110.0, alone=True) is some[3]
    resident.clear()
    assert plans.within(largest, 1.1 * 50.0) not in (largest, some[0])


def flops_of(subnet: Subnet) -> int:
    return subnet.flops


def test_a_kind_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no kind of budget is called 'watts'; there are: flops"):
        asked.parse_budgets({"watts": 3})
