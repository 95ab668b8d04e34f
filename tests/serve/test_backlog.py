"""The lines of images that wait: estimates, turns of decoding, what is in vain. No threads."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from shiftnas_serve.planning.planner import Plan
from shiftnas_serve.problem import Problem
from shiftnas_serve.scheduling import backlog as module
from shiftnas_serve.scheduling.backlog import Backlog, Line
from shiftnas_serve.scheduling.pending import Pending
from shiftnas_serve.scheduling.work import Work, WorkFactors
from tests.serve.test_turns import SMALLEST, Sizes

MODEL: Any = SimpleNamespace(planner=Sizes(10.0))


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def image(due_s: float = 9.0, decode_ms: float = 0.0) -> Pending:
    one = Pending(MODEL, {}, 0, 100.0, 100.0 + due_s, Future())
    one.plan = Plan(SMALLEST, {}, degraded=False, shrinks=False)
    one.work = Work("JPEG", decode_ms) if decode_ms else None
    return one


def test_who_comes_first_is_never_hopeless(clock):
    Backlog(2, 1, 16).refuse_if_hopeless(100.001, 10.0)


def test_what_waits_must_leave_time_for_the_smallest_and_a_margin(clock):
    lines = Backlog(2, 1, 16)
    for due_s in (0.02, 0.04, 0.06, 0.06, 0.065):
        lines.run(image(due_s))  # 10 ms each
    with pytest.raises(Problem, match="what waits takes 50 ms") as refused:
        lines.refuse_if_hopeless(100.0655, 10.0)
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == "1"
    lines.refuse_if_hopeless(100.067, 10.0)


def test_only_what_is_due_before_is_in_the_way(clock):
    lines = Backlog(2, 1, 16)
    for _ in range(50):
        lines.run(image(5.0))
    lines.refuse_if_hopeless(100.02, 10.0)


def test_images_that_are_here_and_do_not_wait_yet_count(clock):
    lines = Backlog(2, 1, 16)
    lines.arriving = 5
    with pytest.raises(Problem, match="50 ms"):
        lines.refuse_if_hopeless(100.05, 10.0)


def test_two_runners_take_half_as_long(clock):
    lines = Backlog(2, 2, 16)
    for _ in range(10):
        lines.run(image(9.0))
    with pytest.raises(Problem, match="takes 50 ms"):
        lines.refuse_if_hopeless(200.0, 1e9)


def test_subnets_run_while_an_image_waits_to_be_decoded(clock):
    lines = Backlog(1, 1, 16)
    lines.decode(image(decode_ms=40.0))
    with pytest.raises(Problem, match="40 ms"):
        lines.refuse_if_hopeless(109.0, 1e6, decode_ms=20.0)
    lines.refuse_if_hopeless(109.0, 10.0, decode_ms=20.0)


def test_what_is_over_is_504(clock):
    with pytest.raises(Problem) as refused:
        Backlog(1, 1, 16).refuse_if_hopeless(100.0, 10.0)
    assert refused.value.status == 504


def test_a_line_takes_the_most_urgent_first_and_says_how_long_that_takes():
    line = Line(2)
    some = {due_s: image(due_s) for due_s in (3.0, 1.0, 2.0)}
    for one in some.values():
        line.add(one, 10.0)
    assert line.wait_ms(102.5, 100.0) == 10.0
    assert line.wait_ms(200.0, 100.0) == 15.0
    line.under_way[0] = 100.04
    assert line.wait_ms(200.0, 100.0) == pytest.approx(35.0)
    assert line.pop() == (some[1.0], 10.0)
    line.remove([some[2.0]])
    assert line.images() == [some[3.0]]
    line.pop()
    assert line.wait_ms(200.0, 100.05) == 0.0  # the other thread is free


def test_nothing_is_decoded_in_vain(clock):
    lines = Backlog(1, 1, 16)
    gone, late, last = image(1.0, 10.0), image(2.0, 10.0), image(9.0, 10.0)
    for one in (gone, late, last):
        lines.decode(one)
    lines.cancel(gone)
    clock.now += 1.995  # it would end too late, and another waits behind it
    assert lines.next_to_decode(0) is last
    with pytest.raises(Problem) as refused:
        late.future.result(0)
    assert refused.value.status == 504
    assert not gone.future.done()


def test_what_would_only_end_too_late_is_decoded_if_nobody_waits_behind_it(clock):
    lines = Backlog(1, 1, 16)
    alone = image(0.05, 10.0)
    lines.decode(alone)
    clock.now += 0.045
    assert lines.next_to_decode(0) is alone


def test_what_is_cancelled_does_not_run_and_the_end_is_told(clock):
    lines = Backlog(1, 1, 16)
    kept, gone = image(), image()
    for one in (gone, kept):
        lines.run(one)
    lines.cancel(gone)
    group = lines.next_group(0, lambda: 9.0)
    assert group.images == [kept]
    assert lines.next_group(0, lambda: 0.0) is None
    told = []
    waits = threading.Thread(target=lambda: told.append(lines.next_group(0, lambda: math.inf)))
    waits.start()
    lines.close()
    waits.join(20)
    assert told == [None]
    assert lines.next_to_decode(0) is None


def test_a_build_under_way_is_in_the_way_of_who_comes(clock):
    lines = Backlog(2, 1, 16)
    assert lines.building(0, 70.0)
    with pytest.raises(Problem, match="what waits takes 70 ms") as refused:
        lines.run(image(0.05))
    assert refused.value.status == 429
    lines.run(image(0.2))
    lines.built(0)
    assert not lines.building(0, 70.0)  # somebody waits now
    lines.next_group(0, lambda: 0.0)
    lines.refuse_if_hopeless(100.05, 10.0)


def test_a_session_that_must_be_built_first_takes_longer(clock, monkeypatch):
    monkeypatch.setattr(Sizes, "build_ms", lambda *_: 60.0)
    lines = Backlog(2, 1, 16)
    lines.run(image())
    lines.next_group(0, lambda: 0.0)
    with pytest.raises(Problem, match="what waits takes 70 ms"):
        lines.refuse_if_hopeless(100.05, 10.0)


def test_it_is_quiet_from_the_end_of_the_last_on(clock):
    lines = Backlog(1, 1, 16)
    clock.now += 5.0
    assert lines.quiet_s() == 5.0
    lines.run(image())
    assert lines.quiet_s() == 0.0
    clock.now += 1.0
    lines.next_group(0, lambda: 0.0)
    clock.now += 1.0
    assert lines.quiet_s() == 0.0
    lines.next_group(0, lambda: 0.0)
    clock.now += 2.0
    assert lines.quiet_s() == 2.0
    lines.building(0, 70.0)
    lines.built(0)
    clock.now += 1.0
    assert lines.quiet_s() == 3.0
    lines.decode(image(99.0, 10.0))
    assert lines.quiet_s() == 0.0


def test_what_work_takes_is_learnt_for_each_kind():
    factors = WorkFactors()
    assert factors.expected_ms(Work("PNG", 10.0)) == 10.0
    factors.learn(Work("PNG", 10.0), 40.0)
    assert factors.expected_ms(Work("PNG", 5.0)) == 20.0
    assert factors.expected_ms(Work("JPEG", 5.0)) == 5.0
    for _ in range(100):
        factors.learn(Work("PNG", 10.0), 20.0)
    assert factors.expected_ms(Work("PNG", 5.0)) == pytest.approx(10.0, rel=0.01)
    factors.learn(Work("GIF", 1.0), 1e9)
    assert factors.expected_ms(Work("GIF", 1.0)) == 50.0
