"""Numbers of several processes, added up: in this process and forked ones."""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shiftnas_serve.metrics import FAMILIES, Metrics


def said(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples, as Prometheus reads them."""
    text = metrics.text({"name": 'a"b', "version": "1"}).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def opened(folder: Path) -> Metrics:
    metrics = Metrics(folder)
    metrics.open()
    return metrics


def count_something(metrics: Metrics, times: int) -> None:
    metrics.open()
    for _ in range(times):
        metrics.answered(200)
        metrics.in_flight.inc()
        metrics.decode_seconds.observe(0.25)
    os._exit(0)  # as a kill would


def test_numbers_of_all_processes_add_up_and_of_the_dead_only_what_they_counted(tmp_path: Path):
    metrics = opened(tmp_path)
    metrics.answered(429)
    metrics.in_flight.inc()
    fork = multiprocessing.get_context("fork")
    for times in (3, 4):
        child = fork.Process(target=count_something, args=(metrics, times))
        child.start()
        child.join(20)
        assert child.pid is not None
        assert said(metrics)["shiftnas_requests_in_flight", ()] == 1 + times
        metrics.forget_process(child.pid)
    numbers = said(metrics)
    assert numbers["shiftnas_requests_in_flight", ()] == 1
    assert numbers["shiftnas_requests_total", (("status", "200"),)] == 7
    assert numbers["shiftnas_requests_total", (("status", "429"),)] == 1
    assert numbers["shiftnas_stage_seconds_sum", (("stage", "decode"),)] == 7 * 0.25
    metrics.in_flight.inc(-1)
    assert said(metrics)["shiftnas_requests_in_flight", ()] == 0


def test_a_histogram_is_what_prometheus_makes_of_the_values(tmp_path: Path):
    metrics, chance = opened(tmp_path), random.Random(0)
    values = [0.0005, 0.001, 30.0, 31.0, 0.0, *(chance.expovariate(3) for _ in range(200))]
    for value in values:
        metrics.queue_seconds.observe(value)
    numbers, stage = said(metrics), ("stage", "queue")
    buckets = {
        dict(labels)["le"]: number
        for (name, labels), number in numbers.items()
        if name.endswith("_bucket") and stage in labels
    }
    assert len(buckets) == 16
    for bound, number in buckets.items():
        assert number == sum(value <= float(bound) for value in values), bound
    assert numbers["shiftnas_stage_seconds_count", (stage,)] == len(values)
    assert numbers["shiftnas_stage_seconds_sum", (stage,)] == pytest.approx(sum(values))


def test_a_process_with_the_number_of_a_dead_one_adds_to_what_that_counted(tmp_path: Path):
    first, second = opened(tmp_path), opened(tmp_path)
    first.retries.inc()
    second.retries.inc()
    assert said(second)["shiftnas_retries_total", ()] == 2


def test_what_was_never_counted_is_there_as_zero_unless_it_has_a_label(tmp_path: Path):
    numbers = said(opened(tmp_path))
    names = {name for name, _ in numbers}
    plain = [one.name for one in FAMILIES if not (one.label or one.now or one.bounds)]
    assert {f"{name}_total" for name in plain} <= names
    assert not [labels for name, labels in numbers if name == "shiftnas_requests_total"]
    assert numbers["shiftnas_model_info", (("name", 'a"b'), ("version", "1"))] == 1


def test_a_disk_that_is_full_is_said_at_the_start(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        opened(tmp_path)
