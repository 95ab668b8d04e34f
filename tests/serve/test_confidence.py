"""Two subnets that share a budget, on their way through the engine."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shiftnas_serve
from models.bundle.confidence import Confidence
from models.bundle.folder import Bundle, load_bundle
from shiftnas_serve.classify import main
from shiftnas_serve.engine.result import Result, Timing
from shiftnas_serve.latency import MARGIN, LatencyTable
from shiftnas_serve.planning.planner import Plan, Planner
from shiftnas_serve.problem import Problem
from shiftnas_serve.scheduling.backlog import Backlog
from shiftnas_serve.scheduling.decoders import prepare
from shiftnas_serve.scheduling.pending import Pending
from shiftnas_serve.scheduling.steps import answered, probabilities
from tests.bundles import make_bundle, make_sure
from tests.pictures import encoded, picture
from tests.serve.test_turns import LARGEST, NOBODY, SMALLEST, Queue, Sizes

ROOT = Path(__file__).resolve().parents[2]
FAST = LatencyTable.of([(1_000, 0.01), (10_000_000_000, 100.0)])
WISH = {"confidence": 0.8}


@pytest.fixture(scope="module", params=["nano-cnn", "nano-vit", "cifar10-cnn", "imagenet-mobile"])
def sure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    zoo = ROOT / "models" / "zoo" / request.param
    if zoo.is_dir():
        return load_bundle(zoo)
    return load_bundle(make_sure(make_bundle(request.param, tmp_path_factory.mktemp("a") / "nano")))


def test_the_sum_of_both_never_exceeds_a_budget(sure: Bundle):
    """Of FLOPs and milliseconds, alone and together; a default binds, too."""
    planners = {d: Planner(sure, d, FAST) for d in (None, 1.3 * sure.max_flops, sure.max_flops)}
    low, high = sure.min_flops, sure.max_flops
    seen = set()

    @given(
        flops=st.none() | st.integers(low, 3 * high),
        latency_ms=st.none() | st.floats(20.0, 300.0),
        default=st.sampled_from(list(planners)),
    )
    def holds(flops: int | None, latency_ms: float | None, default: float | None) -> None:
        asked = WISH | {"flops": flops, "latency_ms": latency_ms}
        asked = {name: value for name, value in asked.items() if value is not None}
        plan = planners[default].plan(asked, 0.0)
        spent = plan.subnet.flops + (0 if plan.second is None else plan.second.flops)
        for bound in (flops, default if flops is None else None):
            assert bound is None or spent <= bound
        assert plan.second is None or plan.second.flops > plan.subnet.flops
        seen.add(plan.second is None)

    holds()
    assert seen == {True, False}


def test_without_confidence_nothing_is_shared(sure: Bundle):
    planner = Planner(sure, None, FAST)
    for asked in ({}, {"flops": 2.0 * sure.max_flops}):
        assert planner.plan(asked, 0.0).second is None
        assert planner.plan(asked, 0.0).subnet.flops == sure.max_flops


def test_a_pair_shares_the_time_that_there_is_or_the_largest_in_time_answers(sure: Bundle):
    planner, seen = Planner(sure, None, FAST), set()
    no_hurry = planner.plan(WISH, 0.0).second
    least_ms, largest_ms = map(FAST.answer_ms, (sure.min_flops, sure.max_flops))
    for latency_ms in np.linspace(1.001 * least_ms, 2 * largest_ms, 200):
        asked = {"latency_ms": float(latency_ms)}
        one, plan = planner.plan(asked, 0.0), planner.plan(WISH | asked, 0.0)
        seen.add(plan.second is None)
        last = plan.second or plan.subnet
        assert plan.degraded == (last.flops < no_hurry.flops)
        if plan.second is None:
            assert plan.subnet is one.subnet
        else:
            both_ms = planner.cost_ms(plan.subnet) + planner.cost_ms(plan.second)
            assert MARGIN * (both_ms - 0.02) + FAST.after_ms <= latency_ms
    assert seen == {True, False}
    assert planner.plan(WISH | {"latency_ms": 1e6}, 0.0).second is no_hurry


@pytest.fixture(scope="module")
def engine(bundle_folder: Path):
    with shiftnas_serve.load(bundle_folder, prebuild=False) as one:
        yield one


@pytest.mark.parametrize("side", [40, 1000])
def test_the_second_answer_is_that_of_its_subnet_alone(engine, bundle: Bundle, side):
    """Also of a large photo, and where the subnets look at it in different sizes."""
    photo = encoded(picture(side))
    assert bundle.confidence is not None
    for budget, first, second in bundle.confidence.pairs:
        both = engine.classify(photo, flops=budget, confidence=0.999999)
        alone = engine.classify(photo, flops=bundle.space.flops(bundle.listed[second]) * 1.0001)
        assert both.spent_flops == first + second
        if alone.subnet is both.subnet:
            assert both.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
        assert both.timing.infer_ms > 0
        assert both.timing.queue_ms >= 0


@pytest.mark.parametrize("latency", [{}, {"latency_ms": 60_000}])
def test_a_large_photo_waits_in_the_sizes_of_its_two_subnets(engine, latency):
    bundle, photo, seen = engine.model.bundle, picture(1000), set()
    for budget, _, _ in bundle.confidence.pairs:
        asked = {**WISH, **latency, "flops": budget}
        one = engine._pending(np.asarray(photo), asked, 1, Future())
        one.plan = engine.model.planner.plan(asked, 0.0)
        prepare(one, 10**9)
        sides = one.plan.subnet.side, one.plan.second.side
        kept = one.pixels, one.pixels if one.next_pixels is None else one.next_pixels
        for pixels, side in zip(kept, sides, strict=True):
            np.testing.assert_array_equal(pixels, bundle.preprocess.pixels(photo, side))
        seen.add(sides[0] == sides[1])
    assert False in seen


def test_images_together_each_get_what_they_need(engine, bundle: Bundle):
    photos = [encoded(picture(seed=index)) for index in range(24)]
    alone = [engine.classify(one, confidence=0.5) for one in photos]
    wish = float(np.median([one.probabilities.max() for one in alone]))
    some = engine.classify_batch(photos, confidence=wish)
    assert bundle.confidence is not None
    _, first, second = bundle.confidence.pairs[-1]
    assert {one.spent_flops for one in some} == {first, first + second}
    for one in some:
        assert (one.spent_flops == first) == (one.subnet.flops == first)
        if one.subnet.flops == first:
            assert one.predictions[0].probability >= wish
        assert not one.degraded


def test_probabilities_are_calibrated_where_they_are_compared(bundle: Bundle):
    known = Confidence(((1, 2.0),), (), 25, "none")
    model: Any = SimpleNamespace(bundle=SimpleNamespace(confidence=known))
    logits, plain = np.log([0.8, 0.2]), np.array([0.8, 0.2])
    one = Pending(model, WISH, 1, 0.0, 9.0, Future())
    one.plan = Plan(SMALLEST, WISH, degraded=False, shrinks=False, confidence=0.8)
    assert probabilities(one, SMALLEST, logits, plain) == pytest.approx([2 / 3, 1 / 3])
    one.plan = Plan(SMALLEST, {}, degraded=False, shrinks=False)
    assert probabilities(one, SMALLEST, logits, plain) is plain


# ------------------------------------------------------------------------------ when time is short


class Slow(Sizes):
    """A planner whose subnets take 10 ms for each FLOP."""

    def next_ms(self, plan: Plan) -> float:
        return self.cost_ms(plan.subnet)


def unsure(due_s: float, unit_ms: float = 10.0, **more: Any) -> tuple[Pending, Result]:
    """An image whose first answer is not sure, and that answer."""
    model: Any = SimpleNamespace(planner=Slow(unit_ms))
    one = Pending(model, WISH, 1, 0.0, time.monotonic() + due_s, Future())
    one.plan = Plan(SMALLEST, WISH, False, False, confidence=0.8, second=LARGEST)
    timing = Timing(0.0, 0.0, 1.0, 0.0, 1, "resident")
    values = {"subnet": SMALLEST, "probabilities": np.array([0.6, 0.4])} | more
    rest = {"asked": WISH, "degraded": False, "timing": timing, "spent_flops": SMALLEST.flops}
    return one, Result(predictions=[], model=NOBODY, **rest, **values)


def test_with_time_an_unsure_image_waits_for_its_second_subnet():
    lines = Backlog(1, 1, 16)
    one, result = unsure(9.0)
    assert answered(one, result, lines) is None
    group = lines.next_group(0, lambda: 0.0)
    assert group is not None
    assert group.images == [one]
    assert group.subnet is LARGEST
    assert one.plan is not None
    assert one.plan.spent_flops == SMALLEST.flops
    assert one.first == msgspec.structs.replace(result, degraded=True)


def test_without_time_the_first_answer_is_given_and_says_so():
    lines = Backlog(1, 1, 16)
    one, result = unsure(0.03)  # the second takes 40 ms
    given = answered(one, result, lines)
    assert given is not None
    assert given.degraded
    assert len(lines) == 0


def test_what_is_due_before_takes_time_too():
    """A second subnet takes 4 s here."""
    lines = Backlog(1, 1, 16)

    def waits(due_s: float) -> bool:
        return answered(*unsure(due_s, 1000.0), lines) is None

    assert all(waits(due_s) for due_s in (100, 101, 102))
    assert waits(9)  # nothing is due before
    assert waits(11)
    assert not waits(12)


@pytest.mark.parametrize(
    "more",
    [
        {"probabilities": np.array([0.8, 0.2])},
        {"subnet": LARGEST},
    ],
)
def test_what_is_sure_or_was_made_smaller_goes_no_further(more):
    """A subnet other than the plan's is a smaller one: others wait."""
    lines = Backlog(1, 1, 16)
    one, result = unsure(9.0, **more)
    given = answered(one, result, lines)
    assert given is not None
    assert given.degraded is ("subnet" in more)
    assert len(lines) == 0


def test_a_second_turn_that_comes_too_late_is_not_run():
    queue = Queue(unit_ms=10.0)
    one = queue.add(0, LARGEST, deadline_s=0.03)
    assert queue.take().subnet is LARGEST  # alone, it is tried
    queue = Queue(unit_ms=10.0)
    one = queue.add(0, LARGEST, deadline_s=0.03)
    one.first = unsure(9.0)[1]  # it has an answer already
    assert queue.take().subnet is None


# ------------------------------------------------------------------------------ what cannot be had


def test_a_bundle_that_does_not_know_how_sure_it_is_says_so(other_folder: Path, tmp_path, capsys):
    with shiftnas_serve.load(other_folder, prebuild=False) as engine:
        with pytest.raises(Problem, match=r"how sure it is.*trainer\.confidence") as refused:
            engine.classify(encoded(picture()), confidence=0.8)
        assert refused.value.status == 422
    words = [str(tmp_path), "--bundle", str(other_folder), "--confidence", "0.8"]
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not know how sure it is" in line


def test_the_batch_command_says_what_was_spent(
    bundle_folder: Path, bundle: Bundle, tmp_path, capsys
):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    assert bundle.confidence is not None
    _, first, second = bundle.confidence.pairs[-1]
    words = [str(tmp_path), "--bundle", str(bundle_folder), "--confidence", "0.999999"]
    assert main(words) == 0
    head, row = (line.split(",") for line in capsys.readouterr().out.replace('"', "").splitlines())
    assert row[head.index("spent_flops")] == str(first + second)
    assert row[head.index("flops")] == str(second)
    assert row[head.index("budget")] == "confidence 0.999999"
