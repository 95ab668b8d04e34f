"""Latency budgets of a bundle that has a table of milliseconds."""

from pathlib import Path

import numpy as np
import pytest

import shiftnas_serve
from models.bundle.folder import load_bundle
from models.retarget import retarget
from shiftnas_serve.budgets import OutOfRange
from shiftnas_serve.engine import model
from shiftnas_serve.engine.model import measure_latency
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.http.about import describe_budgets
from shiftnas_serve.latency import MARGIN, LatencyTable
from shiftnas_serve.planning.planner import Planner
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.settings import EngineSettings
from tests.bundles import make_bundle
from tests.models.test_costs import made_up_table

PHOTO = Path(__file__).resolve().parents[2] / "docs" / "images" / "cat.jpg"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed")
    plain = make_bundle("nano-cnn", folder / "plain")
    retarget(plain, made_up_table(load_bundle(plain).space), folder / "timed", steps=5)
    return plain, folder / "timed"


@pytest.fixture(scope="module")
def timed(folders):
    return load_bundle(folders[1])


def planner(bundle, factor=1.0):
    ms = bundle.costs["latency_ms"]
    points = [
        (bundle.space.flops(arch), factor * ms.cost.value(whole)) for whole, arch in ms.answers
    ]
    return Planner(bundle, None, LatencyTable.of(points, overhead_ms=0.0))


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
def test_milliseconds_are_answered_by_the_table_times_what_is_observed(timed, factor):
    ms, plans = timed.costs["latency_ms"], planner(timed, factor)
    low, high = ms.cost.value(ms.min), ms.cost.value(ms.cost.max)
    for budget in np.random.default_rng(0).uniform(1.001 * low, 1.1 * high, 200):
        subnet = plans.plan({"latency_ms": factor * budget}, 0.0).subnet
        assert ms.cost.value(ms.cost.of(subnet.value)) <= budget
        # rounded down to the same answer, or where two are as near as rounding, to its neighbour
        assert ms.cost.of(ms.answer(0.999 * budget)) <= ms.cost.of(subnet.value)
    with pytest.raises(OutOfRange):
        plans.plan({"latency_ms": 0.99 * factor * low}, 0.0)


def test_flops_and_milliseconds_both_bind(timed):
    ms, plans, rng = timed.costs["latency_ms"], planner(timed), np.random.default_rng(1)
    for _ in range(200):
        budget = rng.uniform(1.01 * ms.cost.value(ms.min), ms.cost.value(ms.cost.max))
        flops = rng.uniform(timed.space.flops(ms.archs()[0]), timed.max_flops)
        subnet = plans.plan({"latency_ms": budget, "flops": flops}, 0.0).subnet
        assert subnet.flops <= flops
        assert ms.cost.value(ms.cost.of(subnet.value)) <= budget


@pytest.mark.parametrize("alone", [True, False])
def test_no_plan_becomes_larger_in_its_turn(timed, alone):
    """Though a subnet that takes no longer may have more FLOPs. All of these pairs may be asked."""
    plans, ms = planner(timed), timed.costs["latency_ms"]
    known = {*timed.archs(), *ms.archs()}
    assert known > set(ms.archs())
    # just as long as each answer takes, and between
    times_ms = [1.0001 * MARGIN * ms.cost.value(whole) for whole, _ in ms.answers]
    times_ms += list(np.linspace(0.0, 1.3 * max(times_ms), 20))
    for resident in (True, False):
        plans._is_resident = lambda arch, resident=resident: resident
        for arch in known:
            subnet = plans.by_id(timed.space.arch_id(arch))
            for budget_ms in times_ms:
                assert plans.within(subnet, budget_ms, alone=alone).flops <= subnet.flops


def test_flops_alone_are_answered_as_without_a_table(folders, timed):
    plain = load_bundle(folders[0])
    plans = Planner(plain, None, LatencyTable(((1.0, 1.0),)))
    for budget in np.linspace(plain.min_flops, plain.max_flops, 30):
        asked = {"flops": float(budget)}
        assert planner(timed).plan(asked, 0).subnet.id == plans.plan(asked, 0).subnet.id


def test_what_any_subnet_takes_is_predicted_by_the_table(timed):
    """Of answers to FLOPs too, which may take longer than one to milliseconds with as many."""
    ms, plans = timed.costs["latency_ms"], planner(timed, 2.0)
    for arch in timed.archs():
        subnet = plans.by_id(timed.space.arch_id(arch))
        wanted = max(ms.cost.value(ms.cost.of(arch)), ms.cost.value(ms.min))
        assert plans.cost_ms(subnet) == pytest.approx(2 * wanted, rel=1e-6)


def test_budgets_tell_what_each_answer_takes_by_the_table(folders):
    with shiftnas_serve.load(folders[1], prebuild=False) as engine:
        plans = engine.model.planner
        for row in describe_budgets(engine.model)["frontier"]:
            assert row["infer_ms"] == plans.cost_ms(plans.by_id(row["subnet"]))


def test_the_factor_is_measured_when_a_bundle_is_loaded(timed):
    runtime = build_runtime("onnxruntime", "cpu", 1, None)
    sessions = Sessions(timed, runtime, 10**8, [])
    points = dict(measure_latency(timed, sessions))
    ms = timed.costs["latency_ms"]
    factors = {points[timed.space.flops(a)] / ms.cost.value(whole) for whole, a in ms.answers}
    assert max(factors) == pytest.approx(min(factors))
    assert len(points) == len(ms.answers)


def test_beside_other_work_the_shortest_of_what_was_measured_counts(timed, monkeypatch):
    """A small subnet finds a free moment; a large one seems many times as slow as it is."""
    sessions = Sessions(timed, build_runtime("onnxruntime", "cpu", 1, None), 10**8, [])
    for least in (1.0, 3.0):
        taken_ms = iter([least, 400.0, 500.0, 600.0, 900.0])
        monkeypatch.setattr(model, "measure_ms", lambda *_, taken_ms=taken_ms, **__: next(taken_ms))
        assert measure_latency(timed, sessions, min)[0][1] == pytest.approx(least)


def test_a_bundle_that_is_loaded_beside_another_predicts_no_absurd_milliseconds(monkeypatch):
    zoo = Path(model.__file__).resolve().parents[2] / "models" / "zoo" / "cifar10-cnn"
    settings = EngineSettings(bundle=zoo)
    for busy, slowest_ms in ((True, 2 * 14_855_680 / 3_250_048), (False, 1500.0)):
        taken_ms = iter([1.0, 2.0, 500.0, 900.0, 1500.0])
        monkeypatch.setattr(model, "measure_ms", lambda *_, taken_ms=taken_ms, **__: next(taken_ms))
        loaded = model.load_model(zoo, settings, busy=busy)
        table, bundle = loaded.planner.latency, loaded.bundle
        assert table.infer_ms(bundle.min_flops) == 1.0
        assert table.infer_ms(bundle.max_flops) == pytest.approx(slowest_ms, rel=0.01)


def test_the_server_answers_milliseconds_by_it(folders, timed):
    known = {timed.space.arch_id(arch) for arch in timed.costs["latency_ms"].archs()}
    with shiftnas_serve.load(folders[1]) as engine:
        assert engine.classify(PHOTO, latency_ms=1000).subnet.flops == timed.max_flops
        for budget in (20, 50, 100):
            assert engine.classify(PHOTO, latency_ms=budget).subnet.id in known
