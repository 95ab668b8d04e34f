"""What time is kept for the jobs that usually come after one: no processes, no clock."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shiftnas_serve.arrivals import Arrivals
from shiftnas_serve.frames import Job
from shiftnas_serve.pace import Pace
from shiftnas_serve.waiting import Waiting
from tests.serve.test_waiting import LARGEST, PIXELS, SMALLEST, Sizes

TEN_MS = 10.0


def least_ms(key: bytes) -> float:
    return TEN_MS


def job(sent_s: float, *, shrinks: bool = True, key: bytes = LARGEST) -> Job:
    return Job(0, key, PIXELS, sent_s, sent_s + 0.3, sent_s + 0.3 if shrinks else None)


def kept_ms(moments_s: list[float], later_s: float = 0.0, *, shrinks: bool = True) -> float:
    arrivals = Arrivals()
    for moment_s in moments_s:
        arrivals.came(job(moment_s, shrinks=shrinks))
        arrivals.reserve_ms(moment_s, least_ms)
    arrivals.came(job(max(moments_s) + later_s, shrinks=shrinks))
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
    assert arrivals.pace_ms(0.0, lambda key: 1.0) == math.inf
    for number in range(200):
        one = job(0.02 * number, shrinks=number % 2 == 0)
        arrivals.came(one)
        pace.came(one.sent_s, None if number % 2 == 0 else 7.0)
        if number % 3 == 0:
            assert arrivals.pace_ms(one.sent_s, lambda key: 7.0) == pytest.approx(
                pace.share_ms(one.sent_s)
            )


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


def test_the_first_of_a_burst_makes_room_for_those_that_will_come():
    def first_of_the_next(moments_s: list[float]) -> bytes:
        waiting = Waiting()
        for number, moment_s in enumerate(moments_s):
            one = Job(number, LARGEST, PIXELS, moment_s, moment_s + 0.3, moment_s + 0.3)
            waiting.add("client", one)
            waiting.take(moment_s, Sizes(10.0), 1)
        now_s = max(moments_s) + 2
        waiting.forget("client")
        waiting.add("client", Job(9999, LARGEST, PIXELS, now_s, now_s + 0.3, now_s + 0.3))
        group = waiting.take(now_s, Sizes(10.0), 1)
        assert group is not None
        return group.key

    assert first_of_the_next(np.arange(0, 8, 0.1).tolist()) == LARGEST
    assert first_of_the_next(bursts(40)) == SMALLEST
