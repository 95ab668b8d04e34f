"""Our histograms say what the library's own would."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Other
from prometheus_client.core import HistogramMetricFamily

from shiftnas_serve.metrics import Histogram

BOUNDS = (0.0005, 0.1, 1, 30)


class One:
    def __init__(self, histogram: Histogram) -> None:
        self.histogram = histogram

    def collect(self):
        buckets = self.histogram.buckets()
        yield HistogramMetricFamily("seconds", "Time", buckets, self.histogram.sum)


def lines(registry: CollectorRegistry) -> list[str]:
    return [one for one in generate_latest(registry).decode().splitlines() if "_created" not in one]


def test_a_histogram_says_what_that_of_the_library_says():
    ours, theirs = Histogram(BOUNDS), CollectorRegistry()
    other = Other("seconds", "Time", buckets=BOUNDS, registry=theirs)
    rng = random.Random(0)
    values = [*BOUNDS, 0.0, 31.0, *(10 ** rng.uniform(-4, 2) for _ in range(200))]
    for value in values:
        ours.observe(value)
        other.observe(value)
    registry = CollectorRegistry()
    registry.register(One(ours))
    assert lines(registry) == lines(theirs)
    assert ours.count == len(values)
