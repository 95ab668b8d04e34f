"""What subnets are predicted to take, and how that follows what they took: no processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftnas_serve.latency import LatencyTable


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0.01, 100)), min_size=1, max_size=8))
def test_latency_never_falls_with_flops(points):
    table = LatencyTable.of(points)
    predicted = [table.infer_ms(flops) for flops in sorted(flops for flops, _ in points)]
    assert predicted == sorted(predicted)


@given(st.floats(0.5e6, 9e6), st.floats(0.5, 4.0))
def test_what_fits_into_a_time_takes_that_time(flops, correction):
    table = LatencyTable(((1e6, 1.0), (2e6, 2.5), (3e6, 3.0)), correction=correction)
    within = table.flops_inferred_within(table.infer_ms(flops) * 1.000001)
    assert within == pytest.approx(max(flops, 1e6), rel=1e-4)
    assert table.flops_inferred_within(0.99 * correction) == 0.0


def test_overhead_follows_what_is_observed_and_one_hold_up_moves_it_little():
    table = LatencyTable(((1e6, 1.0), (2e6, 2.0)), overhead_ms=1.0)
    assert table.answered(1000.0).answer_ms(1e6) < 2.5
    for _ in range(200):
        table = table.answered(0.5)
    assert table.answer_ms(1e6) == pytest.approx(1.5, rel=0.01)
    assert table.observed(1e6, 1.0).answer_ms(1e6) == table.answer_ms(1e6)


def test_latency_follows_what_is_observed():
    table = LatencyTable(((1e6, 1.0), (2e6, 2.0)))
    for _ in range(1000):
        table = table.observed(1e6, 2.0)
    assert table.infer_ms(1e6) == pytest.approx(2.0, rel=0.01)
    for _ in range(1000):
        table = table.observed(2e6, 2.0)
    assert table.infer_ms(1e6) == pytest.approx(1.0, rel=0.01)


@given(
    st.lists(st.tuples(st.sampled_from([1e6, 2e6]), st.floats(0, 1e6), st.floats(-10, 1e6))),
    st.integers(1, 64),
)
def test_no_observation_makes_a_prediction_absurd(observations, images):
    table = LatencyTable(((1e6, 1.0), (2e6, 2.0)), overhead_ms=1.0)
    least_ms = 1.0
    for flops, infer_ms, overhead_ms in observations:
        table = table.observed(flops, infer_ms, images=images).answered(overhead_ms)
        least_ms = min(least_ms, infer_ms * images)
        assert 0.5 * least_ms <= table.infer_ms(1e6) <= 4.0
        assert 0.0 <= table.after_ms <= 10.0
        assert list(table.points) == sorted(table.points, key=lambda point: point[1])
    for _ in range(3000):
        table = table.observed(2e6, 2.0).answered(1.0)
    if least_ms >= 1.0:
        assert table.answer_ms(1e6) == pytest.approx(2.0, rel=0.01)


# What a small and larger subnets take, and what was measured beside other work.
TRUE = LatencyTable(((1e6, 3.0), (2e6, 7.0), (5e6, 21.0)))
MEASURED = ((1e6, 3.5), (2e6, 200.0), (5e6, 500.0))


def test_what_was_measured_too_slow_is_set_right_by_what_is_answered():
    table = LatencyTable(MEASURED)
    for flops in (5e6, 1e6, 2e6, 5e6, 1e6):
        table = table.observed(flops, TRUE.infer_ms(flops))
    for flops in (1e6, 2e6, 3e6, 5e6):
        right = TRUE.infer_ms(flops)
        assert 0.98 * right <= table.infer_ms(flops) <= 1.3 * right


@pytest.mark.parametrize("smallest_ms", [3.5, 90.0])
def test_what_is_believed_too_slow_to_be_chosen_is_chosen_nevertheless(smallest_ms):
    """Only latency budgets come: what takes long by the table would never be seen."""
    table = LatencyTable.of([(1e6, smallest_ms), *MEASURED[1:]]).bounded(1e6, smallest_ms)
    for _ in range(40):
        flops = min(max(table.flops_inferred_within(60.0), 1e6), 5e6)
        table = table.observed(flops, TRUE.infer_ms(flops))
    assert flops == 5e6
    assert table.infer_ms(5e6) == pytest.approx(21.0, rel=0.3)


def test_a_batch_that_takes_as_long_as_one_image_says_nothing_of_one():
    table = LatencyTable(((1e6, 1.0), (2e6, 2.0)))
    for _ in range(100):
        table = table.observed(2e6, 2.0 / 16, images=16)
    assert table.points == ((1e6, 1.0), (2e6, 2.0))
    assert table.correction >= 0.5


def test_one_image_that_took_long_counts_as_long_as_it_took():
    table = LatencyTable(((1e6, 1.0), (2e6, 2.0)))
    assert table.observed(1e6, 3.0).infer_ms(1e6) < 1.05
    assert table.observed(1e6, 3.0, images=200).infer_ms(1e6) > 2.5
