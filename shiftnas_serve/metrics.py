"""Metrics in Prometheus' format, right over several HTTP processes.

prometheus_client decides when it is imported whether numbers are shared between processes (the
variable PROMETHEUS_MULTIPROC_DIR), so ``host`` sets that first and imports this later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_PARTS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 1)


class Metrics:
    """No label is a budget or a subnet: their number has no bound."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Counter(
            "shiftnas_requests", "Answers to /classify by status", ["status"], registry=registry
        )
        self.in_flight = Gauge(
            "shiftnas_requests_in_flight",
            "Requests to /classify now",
            multiprocess_mode="livesum",
            registry=registry,
        )
        stages = Histogram(
            "shiftnas_stage_seconds",
            "Time of a stage of an answer",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.decode_seconds = stages.labels("decode")
        self.queue_seconds = stages.labels("queue")
        self.infer_seconds = stages.labels("infer")
        self.build_seconds = stages.labels("build")
        self.budget_use = Histogram(
            "shiftnas_budget_use_ratio",
            "FLOPs of the subnet over the FLOPs budget",
            buckets=_PARTS,
            registry=registry,
        )
        self.degraded = Counter(
            "shiftnas_degraded", "Answers made smaller by a latency budget", registry=registry
        )
        self.worker_losses = Counter(
            "shiftnas_worker_losses", "Workers that died and were replaced", registry=registry
        )
        self.http_losses = Counter(
            "shiftnas_http_losses", "HTTP processes that died and were replaced", registry=registry
        )
        self.reloads = Counter(
            "shiftnas_reloads", "Reloads by what came of them", ["result"], registry=registry
        )
        self.worker_stalls = Counter(
            "shiftnas_worker_stalls",
            "Workers ended because an inference did not come back",
            registry=registry,
        )
        self.prebuild_failures = Counter(
            "shiftnas_prebuild_failures",
            "Sessions that could not be built while a worker was idle",
            registry=registry,
        )
        self.retries = Counter(
            "shiftnas_retries", "Jobs sent again because a worker was lost", registry=registry
        )

        self._answers: dict[int, Counter] = {}

    def reserve(self) -> None:
        """Take the disk space of this process's numbers, all of it, now. Raises OSError.

        prometheus_client maps sparse files into memory. On a disk that is full by then the first
        number on a new page would end the process (SIGBUS).
        """
        self.in_flight.inc(0)  # opens the files of this process
        for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob(f"*_{os.getpid()}.db"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def answered(self, status: int) -> None:
        """Count an answer to /classify."""
        counter = self._answers.get(status)
        if counter is None:
            counter = self._answers[status] = self.requests.labels(str(status))
        counter.inc()

    @staticmethod
    def forget_process(pid: int) -> None:
        """A process has died: what it had in flight is gone, what it counted stays."""
        mark_process_dead(pid)

    @staticmethod
    def text(model: Mapping[str, str]) -> bytes:
        """All processes together. ``model``: what is served now, by name and version."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        # Made for each answer and never stored: a version that is served no more leaves nothing.
        registry.register(ModelInfo(model))
        return generate_latest(registry)


class ModelInfo(Collector):
    """``shiftnas_model_info{name="...",version="..."} 1``, of the version that is served."""

    def __init__(self, model: Mapping[str, str]) -> None:
        self._model = dict(model)

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("shiftnas_model_info", "What is served", labels=list(self._model))
        info.add_metric(list(self._model.values()), 1.0)
        yield info
