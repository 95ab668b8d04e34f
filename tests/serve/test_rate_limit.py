"""Rates of API keys: what the rule lets through, over several processes, and as HTTP says it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from shiftnas_serve import rate_limit
from shiftnas_serve.rate_limit import RateLimit
from shiftnas_serve.settings import load_settings
from tests.serve.conftest import start_server, stop_server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


@pytest.fixture
def make(tmp_path: Path):
    made = []

    def make(**options) -> RateLimit:
        made.append(RateLimit(tmp_path / "r", **options))
        return made[-1]

    yield make
    for limit in made:
        limit.close()


def test_a_burst_then_the_rate(make, clock):
    limit = make(keys=2, rate_per_s=10, burst=5)
    rulings = [limit.take(0) for _ in range(6)]
    assert [one.allowed for one in rulings] == [True] * 5 + [False]
    assert [one.remaining for one in rulings] == [4, 3, 2, 1, 0, 0]
    assert rulings[-1].retry_s == pytest.approx(0.1)
    clock.now += 0.1
    assert limit.take(0).allowed
    assert not limit.take(0).allowed
    allowed = 0
    for _ in range(1000):  # far more than the rate, for ten seconds
        clock.now += 0.01
        allowed += limit.take(0).allowed
    assert allowed == pytest.approx(100, abs=1)


def test_keys_do_not_share_and_refusals_cost_nothing(make, clock):
    limit = make(keys=2, rate_per_s=1, burst=3)
    assert limit.take(0, 3).allowed
    assert not limit.take(0, 2).allowed
    assert limit.take(1, 3).allowed
    clock.now += 1
    assert limit.take(0).allowed


def _take_many(path: Path, results) -> None:
    limit = RateLimit(path, keys=1, rate_per_s=1e-6, burst=500)
    results.put(sum(limit.take(0).allowed for _ in range(400)))
    limit.close()


def test_processes_share_one_count(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_take_many, args=(tmp_path / "r", results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert sum(results.get(timeout=60) for _ in workers) == 500
    for worker in workers:
        worker.join()


def test_over_http_each_key_has_its_own_rate(bundle_folder, png, monkeypatch):
    monkeypatch.setenv("SHIFTNAS_API_KEYS", "one,two")
    server = start_server(bundle_folder, "--rate-per-s", "0.01", "--rate-burst", "3")
    try:

        def ask(key: str):
            headers = {"Authorization": f"Bearer {key}"}
            return server.client.post("/classify", content=png, headers=headers)

        assert [ask("one").status_code for _ in range(3)] == [200] * 3
        refused = ask("one")
        assert refused.status_code == 429
        assert "3 at once" in refused.json()["detail"]
        assert 90 <= int(refused.headers["retry-after"]) <= 100
        assert refused.headers["ratelimit"].startswith('"key";r=0;t=')
        assert ask("two").status_code == 200
        assert ask("three").status_code == 401
    finally:
        stop_server(server)


def test_a_rate_without_keys_is_refused():
    with pytest.raises(ValueError, match=r"^rate_per_s limits API keys, and none are set"):
        load_settings({"rate_per_s": "5"}, environment={})
