"""Accuracies over HTTP are held against the table's, with the interval of so many images."""

from types import SimpleNamespace

import pytest

from benchmarks.http_accuracy import compared


@pytest.mark.parametrize(
    ("table", "accuracy", "within"),
    [(1.0, 0.998, True), (1.0, 0.9, False), (0.0, 0.002, True), (0.8, 0.81, True), (0.8, 0.7, 0)],
)
def test_a_share_of_all_or_none_has_an_interval_too(table, accuracy, within):
    row = SimpleNamespace(budget_flops=1e6, test_accuracy=table)
    told = compared(row, accuracy, 900_000, 500)
    assert told["within"] == within
    low, high = told["interval_95"]
    assert low < high
