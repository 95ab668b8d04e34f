"""Metrics in Prometheus' format, right over several HTTP processes (``tallies``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from shiftnas_serve.problem import CLIENT_GONE
from shiftnas_serve.tallies import Count, Spread, Tallies

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_PARTS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 1)
_STATUSES = sorted({*map(int, HTTPStatus), CLIENT_GONE})


@dataclass(frozen=True)
class Family:
    """What Prometheus calls by one name.

    ``label``, ``values``: a label and all that it may be. ``bounds``: of a histogram. ``now``: said
    as it is, not counted.
    """

    name: str
    about: str
    label: str = ""
    values: Sequence[str] = ("",)
    bounds: Sequence[float] = ()
    now: bool = False

    @property
    def size(self) -> int:
        """Numbers for one value of the label."""
        return Spread.size(self.bounds) if self.bounds else 1


# No label is a budget or a subnet: their number has no bound.
FAMILIES = (
    Family("shiftnas_requests", "Answers to /classify by status", "status", [*map(str, _STATUSES)]),
    Family("shiftnas_requests_in_flight", "Requests to /classify now", now=True),
    Family(
        "shiftnas_stage_seconds",
        "Time of a stage of an answer",
        "stage",
        ["decode", "queue", "infer", "build"],
        _SECONDS,
    ),
    Family("shiftnas_budget_use_ratio", "FLOPs of the subnet over the FLOPs budget", bounds=_PARTS),
    Family("shiftnas_degraded", "Answers made smaller by a latency budget"),
    Family("shiftnas_worker_losses", "Workers that died and were replaced"),
    Family("shiftnas_http_losses", "HTTP processes that died and were replaced"),
    Family(
        "shiftnas_reloads",
        "Reloads by what came of them",
        "result",
        ["done", "unchanged", "refused", "busy"],
    ),
    Family("shiftnas_worker_stalls", "Workers ended because an inference did not come back"),
    Family(
        "shiftnas_prebuild_failures", "Sessions that could not be built while a worker was idle"
    ),
    Family("shiftnas_retries", "Jobs sent again because a worker was lost"),
)


class Metrics:
    """What is counted, by name. ``folder``: for the numbers of all processes, empty at first."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[tuple[str, str], int] = {}
        size = 0
        for family in FAMILIES:
            for value in family.values:
                self._places[family.name, value] = size
                size += family.size
        self._tallies = Tallies(folder, size)
        self.answers = {status: self._count("requests", str(status)) for status in _STATUSES}
        self.in_flight = self._count("requests_in_flight")
        self.decode_seconds = self._seconds("decode")
        self.queue_seconds = self._seconds("queue")
        self.infer_seconds = self._seconds("infer")
        self.build_seconds = self._seconds("build")
        place = self._places["shiftnas_budget_use_ratio", ""]
        self.budget_use = Spread(self._tallies, place, _PARTS)
        self.degraded = self._count("degraded")
        self.worker_losses = self._count("worker_losses")
        self.http_losses = self._count("http_losses")
        self.worker_stalls = self._count("worker_stalls")
        self.prebuild_failures = self._count("prebuild_failures")
        self.retries = self._count("retries")

    def _count(self, name: str, value: str = "") -> Count:
        return Count(self._tallies, self._places[f"shiftnas_{name}", value])

    def _seconds(self, stage: str) -> Spread:
        return Spread(self._tallies, self._places["shiftnas_stage_seconds", stage], _SECONDS)

    def open(self) -> None:
        """Begin to count for this process; once more after a fork. Raises OSError."""
        self._tallies.open()

    def answered(self, status: int) -> None:
        """Count an answer to /classify."""
        self.answers[status].inc()

    def reloaded(self, result: str) -> None:
        """Count a reload by what came of it."""
        self._count("reloads", result).inc()

    def forget_process(self, pid: int) -> None:
        """A process has died: what it had in flight is gone, what it counted stays."""
        self._tallies.zero(pid, self.in_flight.place)

    def text(self, model: Mapping[str, str]) -> bytes:
        """All processes together. ``model``: what is served now, by name and version."""
        registry = CollectorRegistry()
        registry.register(_Sums(self._places, self._tallies.sums()))
        # Made for each answer and never stored: a version that is served no more leaves nothing.
        registry.register(ModelInfo(model))
        return generate_latest(registry)


class _Sums(Collector):
    """All families with their numbers."""

    def __init__(self, places: Mapping[tuple[str, str], int], sums: Sequence[float]) -> None:
        self._places, self._sums = places, sums

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            labels = [family.label] if family.label else []
            rows = {}
            for value in family.values:
                place = self._places[family.name, value]
                rows[value] = self._sums[place : place + family.size]
            if family.bounds:
                yield _histogram(family, labels, rows)
                continue
            kind = GaugeMetricFamily if family.now else CounterMetricFamily
            metric = kind(family.name, family.about, labels=labels)
            for value, (number,) in rows.items():
                if number or not labels:
                    metric.add_metric([value] if labels else [], number)
            yield metric


def _histogram(
    family: Family, labels: Sequence[str], rows: Mapping[str, Sequence[float]]
) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(family.name, family.about, labels=labels)
    bounds = [floatToGoString(bound) for bound in (*family.bounds, float("inf"))]
    for value, (*counts, total) in rows.items():
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        metric.add_metric([value] if labels else [], buckets, sum_value=total)
    return metric


class ModelInfo(Collector):
    """``shiftnas_model_info{name="...",version="..."} 1``, of the version that is served."""

    def __init__(self, model: Mapping[str, str]) -> None:
        self._model = dict(model)

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("shiftnas_model_info", "What is served", labels=list(self._model))
        info.add_metric(list(self._model.values()), 1.0)
        yield info
