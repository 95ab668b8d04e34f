"""Rates of API keys: what the rule lets through."""

from __future__ import annotations

import pytest

from shiftnas_serve.admission import rate
from shiftnas_serve.admission.rate import RateLimit
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import load_settings


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    return clock


def allowed(limit: RateLimit, key: int = 0, images: int = 1) -> bool:
    try:
        limit.take(key, images)
    except Problem as problem:
        assert problem.status == 429
        return False
    return True


def test_a_burst_then_the_rate(clock):
    limit = RateLimit(rate_per_s=10, burst=5)
    assert [allowed(limit) for _ in range(6)] == [True] * 5 + [False]
    clock.now += 0.1
    assert allowed(limit)
    assert not allowed(limit)
    count = 0
    for _ in range(1000):  # far more than the rate, for ten seconds
        clock.now += 0.01
        count += allowed(limit)
    assert count == pytest.approx(100, abs=1)


def test_a_refusal_says_when_to_come_again(clock):
    limit = RateLimit(rate_per_s=0.01, burst=3)
    limit.take(0, 2)
    with pytest.raises(Problem, match="3 at once") as refused:
        limit.take(0, 2)
    headers = refused.value.headers
    assert headers["Retry-After"] == "100"
    assert headers["RateLimit-Policy"] == '"key";q=3;w=300'
    assert headers["RateLimit"] == '"key";r=1;t=200'
    with pytest.raises(Problem) as never:
        limit.take(0, 4)
    assert never.value.status == 400


def test_keys_do_not_share_and_refusals_cost_nothing(clock):
    limit = RateLimit(rate_per_s=1, burst=3)
    assert allowed(limit, 0, 3)
    assert not allowed(limit, 0, 2)
    assert allowed(limit, 1, 3)
    clock.now += 1
    assert allowed(limit, 0)


def test_a_rate_without_keys_is_refused():
    with pytest.raises(ValueError, match=r"^rate_per_s limits API keys, and none are set"):
        load_settings({"rate_per_s": "5"}, environment={})
