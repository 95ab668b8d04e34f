"""Which images run next, together, and how small: no threads, no clock."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftnas_serve.planning.planner import Plan, Subnet
from shiftnas_serve.scheduling.backlog import Line
from shiftnas_serve.scheduling.pace import Pace
from shiftnas_serve.scheduling.pending import Pending
from shiftnas_serve.scheduling.turns import Group, next_group

NOBODY: Any = None
SMALLEST, MIDDLE, LARGEST = (Subnet(str(n), n, n, {}, NOBODY, 32, n) for n in (1, 2, 4))


@dataclass(frozen=True)
class Sizes:
    """A planner of a subnet for each of three sizes: it takes so many times ``unit_ms``."""

    unit_ms: float = 1.0
    smallest = SMALLEST

    def cost_ms(self, subnet: Subnet) -> float:
        return self.unit_ms * subnet.flops

    def build_ms(self, arch: Any) -> float:
        return 0.0

    def within(self, subnet: Subnet, ms: float, *, alone: bool = False) -> Subnet:
        some = [one for one in (SMALLEST, MIDDLE, LARGEST) if one.flops <= subnet.flops]
        return ([one for one in some if self.cost_ms(one) <= ms] or [SMALLEST])[-1]

    def least_ms(self, plan: Plan) -> float:
        return self.cost_ms(self.within(plan.subnet, 0.0) if plan.shrinks else plan.subnet)


class Queue:
    """Images that wait; ``unit_ms`` as in ``Sizes``. Each carries its number as what it asks."""

    def __init__(self, unit_ms: float = 1.0) -> None:
        self.model: Any = SimpleNamespace(planner=Sizes(unit_ms))
        self.line, self.pace, self.numbers = Line(1), Pace(), {}

    def add(
        self,
        number: int,
        subnet: Subnet = SMALLEST,
        deadline_s: float = 9.0,
        *,
        shrinks: bool = False,
        at_s: float = 0.0,
    ) -> Pending:
        one = Pending(self.model, {}, 0, at_s, deadline_s, Future())
        one.plan = Plan(subnet, {}, degraded=False, shrinks=shrinks)
        one.aim_s = deadline_s if shrinks else None
        one.least_ms = self.model.planner.least_ms(one.plan)
        self.numbers[one] = number
        self.pace.came(at_s, None if shrinks else one.least_ms)
        self.line.add(one, one.least_ms)
        return one

    def take(self, now_s: float = 0.0, max_batch: int = 16, threads: int = 1) -> Group:
        group = next_group(self.line.images(), now_s, self.pace, max_batch, threads)
        self.line.remove(group.images)
        return group

    def next_numbers(self, *given: Any, **named: Any) -> list[int]:
        return self.of(self.take(*given, **named))

    def of(self, group: Group) -> list[int]:
        return [self.numbers[one] for one in group.images]


def test_images_of_a_subnet_run_together_and_the_most_urgent_first():
    queue = Queue()
    for number, (subnet, due_s) in enumerate(
        [(SMALLEST, 5.0), (MIDDLE, 3.0), (SMALLEST, 9.0), (MIDDLE, 4.0)]
    ):
        queue.add(number, subnet, due_s)
    assert queue.next_numbers() == [1, 3]
    assert queue.next_numbers() == [0, 2]
    assert len(queue.line) == 0


def test_images_of_two_versions_never_run_together():
    queue = Queue()
    queue.add(0)
    queue.model = SimpleNamespace(planner=Sizes())
    queue.add(1)
    assert queue.next_numbers() == [0]
    assert queue.next_numbers() == [1]


def test_equal_deadlines_run_in_the_order_of_arrival_and_a_batch_has_its_size():
    queue = Queue(900)
    for number in range(6):
        queue.add(number)
    assert queue.next_numbers(max_batch=1) == [0]
    assert queue.next_numbers() == [1, 2]  # 9 s are left; a batch may take a fifth of that
    queue.model.planner = Sizes(5000)
    assert queue.next_numbers() == [3]


def test_late_images_come_alone():
    queue = Queue()
    for number, due_s in enumerate((1.0, 2.0, 8.0)):
        queue.add(number, deadline_s=due_s)
    late = queue.take(5.0)
    assert (late.subnet, queue.of(late)) == (None, [0, 1])
    in_time = queue.take(5.0)
    assert (in_time.subnet, queue.of(in_time)) == (SMALLEST, [2])


def test_what_would_end_too_late_is_refused_only_where_others_wait():
    queue = Queue(100)
    queue.add(1, LARGEST, 1.0)
    queue.add(2, LARGEST, 9.0)
    late = queue.take(0.9)
    assert (late.subnet, queue.of(late)) == (None, [1])
    alone = Queue(100)
    alone.add(1, LARGEST, 1.0)
    assert alone.take(0.9).subnet is LARGEST


def test_one_that_can_shrink_enough_is_not_late():
    queue = Queue(100)
    queue.add(1, LARGEST, 1.0, shrinks=True)
    queue.add(2, LARGEST, 9.0)
    group = queue.take(0.85)
    assert (group.subnet, queue.of(group)) == (SMALLEST, [1])


@pytest.mark.parametrize(("others", "subnet"), [(0, LARGEST), (1, MIDDLE), (2, SMALLEST)])
def test_images_shrink_as_more_wait(others, subnet):
    """With 6.5 units of time for each, what runs before an image counting twice."""
    queue = Queue(100)
    for number in range(1 + others):
        queue.add(number, LARGEST, 0.65, shrinks=True)
    assert queue.take().subnet is subnet


def test_two_threads_have_time_for_twice_as_much():
    queue = Queue(100)
    for number in range(2):
        queue.add(number, LARGEST, 0.65, shrinks=True)
    assert queue.take(threads=2).subnet is LARGEST


def test_images_shrink_for_the_sake_of_those_that_may_not():
    alone = Queue(100)
    alone.add(1, LARGEST, 0.9, shrinks=True)
    assert alone.take().subnet is LARGEST
    queue = Queue(100)
    queue.add(0, MIDDLE, 0.8)
    for number in (1, 2):
        queue.add(number, LARGEST, 0.9, shrinks=True)
    assert queue.next_numbers() == [0]
    assert queue.take(0.2).subnet is MIDDLE


def test_no_image_grows_and_one_without_a_latency_budget_never_shrinks():
    queue = Queue()
    queue.add(1, LARGEST, 9.0, shrinks=True)
    queue.add(2, SMALLEST, 9.0, shrinks=True)
    queue.add(3, MIDDLE, 9.0)
    queue.add(4, LARGEST, 9.1, shrinks=True)
    queue.add(5, LARGEST, 9.2)
    first = queue.take()
    assert (first.subnet, queue.of(first)) == (LARGEST, [1, 4, 5])
    second = queue.take()
    assert (second.subnet, queue.of(second)) == (SMALLEST, [2])
    assert queue.take().subnet is MIDDLE


sizes = st.sampled_from([SMALLEST, MIDDLE, LARGEST])


@given(st.lists(st.tuples(sizes, st.floats(0.0, 3.0), st.booleans()), max_size=20), st.data())
def test_every_image_runs_once_within_its_bound_or_is_late(asked, data):
    queue = Queue(50)
    for number, (subnet, due_s, shrinks) in enumerate(asked):
        queue.add(number, subnet, due_s, shrinks=shrinks)
    now_s, seen = 0.0, []
    while len(queue.line):
        group = queue.take(now_s, 4)
        assert group.images
        seen += queue.of(group)
        for one in group.images:
            if group.subnet is None:
                assert one.deadline_s < now_s + 0.05 * one.plan.subnet.flops
            elif one.aim_s is None:
                assert group.subnet is one.plan.subnet
            else:
                assert group.subnet.flops <= one.plan.subnet.flops
        if group.subnet is not None:
            now_s += data.draw(st.floats(0.0, 0.5))
    assert sorted(seen) == list(range(len(asked)))


def test_the_pace_is_what_there_is_time_for_in_the_long_run():
    pace = Pace()
    assert pace.share_ms(0.0) == math.inf
    for number in range(1000):
        pace.came(0.02 * number)
    assert pace.share_ms(20.0) == pytest.approx(20.0, rel=0.05)
    for number in range(1000):
        pace.came(20 + 0.02 * number)
        pace.came(20 + 0.02 * number, fixed_ms=15.0)
    assert pace.share_ms(40.0) == pytest.approx(5.0, rel=0.05)
    for number in range(1000):
        pace.came(40 + 0.02 * number, fixed_ms=50.0)
    assert pace.share_ms(60.0) == 0.0
    assert pace.share_ms(90.0) > 10_000


def test_none_gets_more_than_there_is_time_for_in_the_long_run():
    """Though nothing waits behind it."""
    for apart_s, subnet in ((0.1, LARGEST), (0.03, MIDDLE), (0.01, SMALLEST)):
        queue = Queue(10.0)
        for number in range(1000):
            at_s = apart_s * number
            queue.add(number, LARGEST, at_s + 9, shrinks=True, at_s=at_s)
            group = queue.take(at_s, 1)
        assert group.subnet is subnet
