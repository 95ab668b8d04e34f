"""The scheduler under load, in virtual time: nothing here depends on the machine."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.parts.load import arrivals
from benchmarks.slo_virtual import Machine, Outcome, simulate
from models.bundle.folder import Bundle
from models.space.arch import Arch
from shiftnas_serve.latency import LatencyTable

SECONDS = 40.0
HTTP_MS = 1.0


@pytest.fixture(scope="module")
def accuracy(bundle: Bundle) -> dict[int, float]:
    """Rising ever more slowly, as trained ones do: 70 to 80 %."""
    flops = sorted(bundle.space.flops(arch) for arch in bundle.archs())
    return {f: 0.7 + 0.1 * (i / (len(flops) - 1)) ** 0.5 for i, f in enumerate(flops)}


@pytest.fixture(scope="module")
def core(bundle: Bundle) -> Machine:
    return Machine(LatencyTable(((bundle.min_flops, 8.0), (bundle.max_flops, 32.0))), HTTP_MS)


def outcome(
    bundle: Bundle,
    accuracy: dict[int, float],
    core: Machine,
    load: float,
    cv2: float,
    fixed: Arch | None = None,
) -> Outcome:
    """Mean of two seeds, at ``load`` times the capacity of the largest subnet."""
    alone_ms = core.ms(bundle.max_flops, 0.0)
    seen = [
        simulate(
            bundle,
            accuracy,
            core,
            arrivals(1000 * load / alone_ms, SECONDS, cv2, seed),
            10 * alone_ms,
            fixed,
            seed,
        )
        for seed in (0, 1)
    ]
    return Outcome(*np.mean([(o.attainment, o.effective_accuracy, o.shed) for o in seen], axis=0))


def test_up_to_the_capacity_of_the_largest_all_are_in_time(bundle, accuracy, core):
    for load in (0.5, 1.0):
        assert outcome(bundle, accuracy, core, load, 1.0).attainment > 0.999
        assert outcome(bundle, accuracy, core, load, 8.0).attainment > 0.99


def test_an_idle_server_answers_with_the_largest(bundle, accuracy, core):
    slow = outcome(bundle, accuracy, core, 0.05, 1.0)
    assert slow.effective_accuracy == pytest.approx(max(accuracy.values()), abs=1e-3)


@pytest.mark.parametrize("cv2", [1.0, 8.0])
def test_no_fixed_subnet_is_better(bundle, accuracy, core, cv2):
    """At any load up to where the smallest is overloaded; beyond, at most a little."""
    flops = sorted(accuracy)
    chosen = {flops[0], flops[len(flops) // 2], flops[-1]}
    for load, allowed in ((0.5, 0.002), (1.0, 0.002), (1.5, 0.002), (3.0, 0.01), (6.0, 0.01)):
        ours = outcome(bundle, accuracy, core, load, cv2)
        for arch in bundle.archs():
            if bundle.space.flops(arch) in chosen:
                fixed = outcome(bundle, accuracy, core, load, cv2, arch)
                assert ours.effective_accuracy > fixed.effective_accuracy - allowed


def test_a_machine_that_slows_down_and_recovers_is_followed(bundle, accuracy, core):
    """Three times slower for a third of the time, at a load that the smaller subnets can take."""

    def slowness(now_s: float) -> float:
        return 3.0 if SECONDS / 3 < now_s < 2 * SECONDS / 3 else 1.0

    slowed = Machine(core.table, HTTP_MS, slowness)
    found = outcome(bundle, accuracy, slowed, 0.8, 1.0)
    assert found.attainment > 0.99
    never = outcome(bundle, accuracy, core, 0.8, 1.0)
    assert found.effective_accuracy > never.effective_accuracy - 0.04
