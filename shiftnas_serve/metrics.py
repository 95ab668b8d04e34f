"""Metrics in Prometheus' format. Each process counts for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shiftnas_serve import log
from shiftnas_serve.engine.result import Result
from shiftnas_serve.library import Engine
from shiftnas_serve.problem import CLIENT_GONE, STATUSES

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_PARTS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 1)


class Metrics(Collector):
    """What is counted. All values of a label are there from the start, so that rates miss nothing.

    No label is a budget or a subnet: their number has no bound. ``engine``: the one that serves, or
    None while it loads.
    """

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        answers = counter("shiftnas_requests", "Answers to /classify by status", ["status"])
        statuses = (200, CLIENT_GONE, *STATUSES)
        self._answers = {status: answers.labels(str(status)) for status in statuses}
        self.in_flight = Gauge(
            "shiftnas_requests_in_flight", "Requests to /classify now", registry=self._registry
        )
        told = "Time of a stage of an answer"
        stages = histogram("shiftnas_stage_seconds", told, ["stage"], buckets=_SECONDS)
        self._decode, self._queue, self._infer, self._build = map(
            stages.labels, ("decode", "queue", "infer", "build")
        )
        told = "FLOPs of what ran over the FLOPs budget"
        self._budget_use = histogram("shiftnas_budget_use_ratio", told, buckets=_PARTS)
        self._degraded = counter("shiftnas_degraded", "Answers made smaller by a latency budget")
        self._reloads = counter("shiftnas_reloads", "Reloads by what came of them", ["result"])
        for result in ("done", "unchanged", "refused"):
            self._reloads.labels(result)
        self._engine = engine
        self._registry.register(self)

    def answered(self, status: int) -> None:
        """An answer to /classify or to its like under /v2."""
        self._answers[status].inc()

    def observed(self, result: Result) -> None:
        timing = result.timing
        self._decode.observe(timing.decode_ms / 1000)
        self._queue.observe(timing.queue_ms / 1000)
        self._infer.observe(timing.infer_ms / 1000)
        if timing.build_ms:
            self._build.observe(timing.build_ms / 1000)
        if "flops" in result.asked:
            self._budget_use.observe(result.spent_flops / result.asked["flops"])
        if result.degraded:
            self._degraded.inc()

    def stage(self, name: str) -> dict[str, int]:
        """Of how many images, and how many nanoseconds it took in all."""
        of = partial(self._registry.get_sample_value, labels={"stage": name})
        count, total_s = of("shiftnas_stage_seconds_count"), of("shiftnas_stage_seconds_sum")
        return {"count": int(count or 0), "ns": int(1e9 * (total_s or 0.0))}

    def reloaded(self, result: str) -> None:
        """A reload: ``done``, ``unchanged`` or ``refused``."""
        self._reloads.labels(result).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the engine counts, and which model it serves: earlier ones leave nothing."""
        engine, lost = self._engine(), log.lost_lines()
        failures = 0 if engine is None else engine.runners.prebuild_failures
        told = "Lines of the log nobody took in time"
        yield CounterMetricFamily("shiftnas_log_lines_lost", told, lost)
        told = "Sessions that could not be built ahead of time"
        yield CounterMetricFamily("shiftnas_prebuild_failures", told, failures)
        if engine is None:
            return
        told, model = "Images that are here now", engine.model
        yield GaugeMetricFamily("shiftnas_images_waiting", told, engine.room.images)
        told = "Memory of sessions (an estimate)"
        yield GaugeMetricFamily("shiftnas_session_bytes", told, model.sessions.size_bytes)
        labels = ["name", "version", "precision"]
        info = GaugeMetricFamily("shiftnas_model_info", "What is served", labels=labels)
        info.add_metric(list(msgspec.structs.astuple(model.name)), 1.0)
        yield info
