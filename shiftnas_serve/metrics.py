"""Metrics in Prometheus' format. Each process counts for itself."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from shiftnas_serve import log
from shiftnas_serve.engine.result import Result
from shiftnas_serve.library import Engine
from shiftnas_serve.problem import CLIENT_GONE, TITLES

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_PARTS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 1)
_STATUSES = (200, CLIENT_GONE, *TITLES)


class Histogram:
    """How many values were up to each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Of all values."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each holds those before it."""
        names = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        return list(zip(names, accumulate(self._counts), strict=True))


class Metrics(Collector):
    """What is counted. All values of a label are there from the start, so that rates miss nothing.

    No label is a budget or a subnet: their number has no bound. ``engine``: the one that serves, or
    None while it loads. Only the event loop counts, so nothing takes a lock: every answer passes
    here.
    """

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        self._answers = dict.fromkeys(_STATUSES, 0)
        self.in_flight = self._degraded = 0
        self._stages = {name: Histogram(_SECONDS) for name in ("decode", "queue", "infer", "build")}
        self._decode, self._queue, self._infer, self._build = self._stages.values()
        self._budget_use = Histogram(_PARTS)
        self._reloads = dict.fromkeys(("done", "unchanged", "refused"), 0)
        self._registry.register(self)

    def answered(self, status: int) -> None:
        """An answer to /classify or to its like under /v2."""
        self._answers[status] += 1

    def observed(self, result: Result) -> None:
        timing = result.timing
        self._decode.observe(timing.decode_ms / 1000)
        self._queue.observe(timing.queue_ms / 1000)
        self._infer.observe(timing.infer_ms / 1000)
        if timing.build_ms:
            self._build.observe(timing.build_ms / 1000)
        if "flops" in result.asked:
            self._budget_use.observe(result.spent_flops / result.asked["flops"])
        self._degraded += result.degraded

    def stage(self, name: str) -> dict[str, int]:
        """Of how many images, and how many nanoseconds it took in all."""
        stage = self._stages[name]
        return {"count": stage.count, "ns": int(1e9 * stage.sum)}

    def reloaded(self, result: str) -> None:
        """A reload: ``done``, ``unchanged`` or ``refused``."""
        self._reloads[result] += 1

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for; of the engine what it counts, and which model it serves."""
        answers = CounterMetricFamily(
            "shiftnas_requests", "Answers to /classify by status", labels=["status"]
        )
        for status, count in self._answers.items():
            answers.add_metric([str(status)], count)
        reloads = CounterMetricFamily(
            "shiftnas_reloads", "Reloads by what came of them", labels=["result"]
        )
        for result, count in self._reloads.items():
            reloads.add_metric([result], count)
        stages = HistogramMetricFamily(
            "shiftnas_stage_seconds", "Time of a stage of an answer", labels=["stage"]
        )
        for name, stage in self._stages.items():
            stages.add_metric([name], stage.buckets(), stage.sum)
        use = self._budget_use
        engine = self._engine()
        failures = 0 if engine is None else engine.runners.prebuild_failures
        yield answers
        yield reloads
        yield stages
        yield GaugeMetricFamily(
            "shiftnas_requests_in_flight", "Requests to /classify now", self.in_flight
        )
        yield HistogramMetricFamily(
            "shiftnas_budget_use_ratio",
            "FLOPs of what ran over the FLOPs budget",
            use.buckets(),
            use.sum,
        )
        yield CounterMetricFamily(
            "shiftnas_degraded", "Answers made smaller by a latency budget", self._degraded
        )
        yield CounterMetricFamily(
            "shiftnas_log_lines_lost", "Lines of the log nobody took in time", log.lost_lines()
        )
        yield CounterMetricFamily(
            "shiftnas_prebuild_failures", "Sessions that could not be built ahead of time", failures
        )
        if engine is None:
            return
        info = GaugeMetricFamily(
            "shiftnas_model_info", "What is served", labels=["name", "version", "precision"]
        )
        info.add_metric(list(msgspec.structs.astuple(engine.model.name)), 1.0)
        yield info
        yield GaugeMetricFamily(
            "shiftnas_images_waiting", "Images that are here now", engine.room.images
        )
        yield GaugeMetricFamily(
            "shiftnas_session_bytes",
            "Memory of sessions (an estimate)",
            engine.model.sessions.size_bytes,
        )
