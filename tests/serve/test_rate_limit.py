"""Rates of API keys: what the rule lets through, over several processes, and as HTTP says it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shiftnas_serve import rate_limit
from shiftnas_serve.rate_limit import RateLimit
from shiftnas_serve.settings import load_settings
from tests.serve.conftest import ROOT, start_server, stop_server


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


TAKE_MANY = """
import sys
from pathlib import Path
from shiftnas_serve.rate_limit import RateLimit

limit = RateLimit(Path(sys.argv[1]), keys=1, rate_per_s=1e-6, burst=15_000)
print("ready", flush=True)
sys.stdin.readline()
print(sum(limit.take(0).allowed for _ in range(10_000)))
"""


def test_processes_share_one_count(tmp_path: Path):
    """Three take at the same time."""
    command = [sys.executable, "-c", TAKE_MANY, str(tmp_path / "r")]
    takers = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for taker in takers:
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            taker.stdin.write("go\n")
            taker.stdin.flush()
        assert sum(int(taker.communicate(timeout=60)[0]) for taker in takers) == 15_000
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()


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
