"""Budgets in milliseconds are asked of a server that runs."""

import pytest

from benchmarks.measured_latency import HELD, over_http
from tests.pictures import encoded, picture


@pytest.mark.slow
def test_every_budget_that_is_asked_for_is_counted_once(bundle_folder):
    told = over_http(bundle_folder, encoded(picture()), threads=1, rounds=2)
    assert told["requests"] == 2 * HELD
    assert told["in_time"] + told["late"] + told["refused"] == pytest.approx(1)
    assert told["by_client"] <= told["in_time"]
    assert 0 <= told["mean_flops"] <= 1
    low, high = told["budgets_ms"]
    assert 0 < low < high
