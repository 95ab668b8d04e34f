"""What time is kept for the jobs that usually come after one: no processes, no clock."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shiftnas_serve.planning.planner import Plan
from shiftnas_serve.scheduling.arrivals import Arrivals
from shiftnas_serve.scheduling.pace import Pace
from tests.serve.test_turns import LARGEST

TEN_MS = 10.0


def least_ms(plan: Plan) -> float:
    return TEN_MS


def plan(*, shrinks: bool = True) -> Plan:
    return Plan(LARGEST, {}, degraded=False, shrinks=shrinks)


def kept_ms(moments_s: list[float], later_s: float = 0.0, *, shrinks: bool = True) -> float:
    arrivals = Arrivals()
    for moment_s in moments_s:
        arrivals.came(moment_s, plan(shrinks=shrinks))
        arrivals.reserve_ms(moment_s, least_ms)
    arrivals.came(max(moments_s) + later_s, plan(shrinks=shrinks))
    return arrivals.reserve_ms(max(moments_s) + later_s + 1, least_ms)


def bursts(of: int, count: int = 5, apart_s: float = 1.5) -> list[float]:
    return [apart_s * burst + 0.001 * number for burst in range(count) for number in range(of)]


def test_the_pace_is_what_there_is_time_for_in_the_long_run():
    pace = Pace()
    assert pace.share_ms(0.0) == math.inf
    for number in range(1000):
        pace.came(0.02 * number)
    assert pace.share_ms(20.0) == pytest.approx(20.0, rel=0.05)
    for number in range(1000):
        pace.came(20 + 0.02 * number)
        pace.came(20 + 0.02 * number, fixed_ms=15.0)
    assert pace.share_ms(40.0) == pytest.approx(5.0, rel=0.05)
    for number in range(1000):
        pace.came(40 + 0.02 * number, fixed_ms=50.0)
    assert pace.share_ms(60.0) == 0.0
    assert pace.share_ms(90.0) > 10_000


def test_the_pace_counts_every_arrival_once():
    arrivals, pace = Arrivals(), Pace()
    assert arrivals.pace_ms(0.0, lambda plan: 1.0) == math.inf
    for number in range(200):
        at_s = 0.02 * number
        arrivals.came(at_s, plan(shrinks=number % 2 == 0))
        pace.came(at_s, None if number % 2 == 0 else 7.0)
        if number % 3 == 0:
            assert arrivals.pace_ms(at_s, lambda plan: 7.0) == pytest.approx(pace.share_ms(at_s))


def test_nothing_is_kept_before_much_has_come_and_for_a_steady_load():
    assert kept_ms([0.0] * 8) == 0.0
    assert kept_ms(np.arange(0, 10, 0.02).tolist()) == 0.0  # 10 ms of work every 20 ms


def test_in_bursts_their_work_is_kept():
    # 19 follow the first of 20, 17 the third: each 10 ms of work, 1 ms later
    assert kept_ms(bursts(20)) == pytest.approx(16 * (TEN_MS - 1), abs=TEN_MS)
    assert kept_ms(bursts(5)) < kept_ms(bursts(20)) < kept_ms(bursts(40))


def test_what_came_long_before_is_forgotten():
    long_ago = bursts(40)
    assert kept_ms(long_ago) > 200
    since = (max(long_ago) + np.arange(0, 8, 0.02)).tolist()
    assert kept_ms(long_ago + since) == 0.0
    assert kept_ms(long_ago, 12.0) == 0.0  # also where little came since


def test_jobs_without_a_latency_budget_wait_and_need_no_room():
    assert kept_ms(bursts(40), shrinks=False) == 0.0
