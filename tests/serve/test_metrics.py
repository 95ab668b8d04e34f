"""What is counted, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from shiftnas_serve.metrics import Metrics
from shiftnas_serve.problem import TITLES


def said(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_every_value_of_a_label_is_there_from_the_start():
    numbers = said(Metrics(lambda: None))
    for status in (200, 499, *TITLES):
        assert numbers["shiftnas_requests_total", (("status", str(status)),)] == 0
    for result in ("done", "unchanged", "refused"):
        assert numbers["shiftnas_reloads_total", (("result", result),)] == 0
    for stage in ("decode", "queue", "infer", "build"):
        assert numbers["shiftnas_stage_seconds_count", (("stage", stage),)] == 0
    for name in ("degraded", "prebuild_failures", "log_lines_lost"):
        assert numbers[f"shiftnas_{name}_total", ()] == 0


def test_answers_are_counted_by_status():
    metrics = Metrics(lambda: None)
    for status in (200, 200, 429):
        metrics.answered(status)
    numbers = said(metrics)
    assert numbers["shiftnas_requests_total", (("status", "200"),)] == 2
    assert numbers["shiftnas_requests_total", (("status", "429"),)] == 1
