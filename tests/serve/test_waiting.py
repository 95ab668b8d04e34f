"""Which jobs run next, together, and how small: no processes, no clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bundle.folder import Bundle
from shiftnas_serve.frames import Job, arch_key
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.selection import Selection
from shiftnas_serve.waiting import Group, Waiting
from shiftnas_serve.worker import latency_archs

PIXELS = np.zeros((2, 2, 3), np.uint8)
SMALLEST, MIDDLE, LARGEST = (arch_key([size]) for size in (1, 2, 4))


@dataclass(frozen=True)
class Sizes:
    """A subnet for each of three sizes: it takes so many times ``unit_ms``."""

    unit_ms: float = 1.0

    def flops(self, key: bytes) -> int:
        return key[0]

    def cost_ms(self, key: bytes) -> float:
        return self.unit_ms * key[0]

    def within(self, key: bytes, ms: float, *, alone: bool = False) -> bytes:
        fitting = [k for k in (SMALLEST, MIDDLE, LARGEST) if k <= key and self.cost_ms(k) <= ms]
        return max(fitting, default=SMALLEST)


def job(
    number: int, key: bytes = SMALLEST, deadline_s: float = 9.0, *, shrinks: bool = False
) -> Job:
    return Job(number, key, PIXELS, 0.0, deadline_s, deadline_s if shrinks else None)


def waiting(*jobs: Job) -> Waiting:
    made = Waiting()
    for one in jobs:
        made.add("client", one)
    return made


def numbers(group: Group | None) -> list[int]:
    return [] if group is None else [waiter.job.id for waiter in group.waiters]


def take(jobs: Waiting, now_s: float = 0.0, unit_ms: float = 1.0, max_batch: int = 16) -> Group:
    group = jobs.take(now_s, Sizes(unit_ms), max_batch)
    assert group is not None
    return group


def test_jobs_of_a_subnet_run_together_and_the_most_urgent_first():
    jobs = waiting(
        job(1, SMALLEST, 5.0), job(2, MIDDLE, 3.0), job(3, SMALLEST, 9.0), job(4, MIDDLE, 4.0)
    )
    assert numbers(take(jobs)) == [2, 4]
    assert numbers(take(jobs)) == [1, 3]
    assert jobs.take(0.0, Sizes(), 16) is None


def test_equal_deadlines_run_in_the_order_of_arrival_and_a_batch_has_its_size():
    jobs = waiting(*(job(number) for number in range(6)))
    assert numbers(take(jobs, max_batch=3)) == [0, 1, 2]
    # 9 s are left; a batch may take a fifth of that
    assert numbers(take(jobs, unit_ms=900)) == [3, 4]
    assert numbers(take(jobs, unit_ms=5000)) == [5]
    assert len(jobs) == 0


def test_what_nobody_waits_for_is_dropped():
    jobs = Waiting()
    for client in ("a", "b"):
        for number in range(3):
            jobs.add(client, job(number))
    jobs.cancel("a", 1)
    jobs.cancel("a", 77)
    jobs.forget("b")
    assert len(jobs) == 2
    assert numbers(take(jobs)) == [0, 2]
    assert len(jobs) == 0


def test_late_jobs_come_alone():
    jobs = waiting(*(job(n, deadline_s=due) for n, due in enumerate((1.0, 2.0, 8.0))))
    late = take(jobs, 5.0)
    assert late.late
    assert numbers(late) == [0, 1]
    in_time = take(jobs, 5.0)
    assert not in_time.late
    assert numbers(in_time) == [2]


def test_what_would_end_too_late_is_refused_only_where_others_wait():
    jobs = waiting(job(1, LARGEST, 1.0), job(2, LARGEST, 9.0))
    late = take(jobs, now_s=0.9, unit_ms=100)
    assert late.late
    assert numbers(late) == [1]
    alone = waiting(job(1, LARGEST, 1.0))
    assert not take(alone, now_s=0.9, unit_ms=100).late


def test_one_that_can_shrink_enough_is_not_late():
    jobs = waiting(job(1, LARGEST, 1.0, shrinks=True), job(2, LARGEST, 9.0))
    group = take(jobs, now_s=0.85, unit_ms=100)
    assert (group.late, group.key, numbers(group)) == (False, SMALLEST, [1])


@pytest.mark.parametrize(("others", "key"), [(0, LARGEST), (1, MIDDLE), (2, SMALLEST)])
def test_jobs_shrink_as_more_wait(others, key):
    """With 6.5 units of time for each, what runs before a job counting twice."""
    jobs = waiting(*(job(n, LARGEST, 0.65, shrinks=True) for n in range(1 + others)))
    assert take(jobs, unit_ms=100).key == key


def test_jobs_shrink_for_the_sake_of_those_that_may_not():
    due = {"deadline_s": 0.9, "shrinks": True}
    assert take(waiting(job(1, LARGEST, **due)), unit_ms=100).key == LARGEST
    jobs = waiting(job(0, MIDDLE, 0.8), job(1, LARGEST, **due), job(2, LARGEST, **due))
    assert numbers(take(jobs, unit_ms=100)) == [0]
    assert take(jobs, now_s=0.2, unit_ms=100).key == MIDDLE


def test_no_job_grows_and_one_without_a_latency_budget_never_shrinks():
    jobs = waiting(
        job(1, LARGEST, 9.0, shrinks=True),
        job(2, SMALLEST, 9.0, shrinks=True),
        job(3, MIDDLE, 9.0),
        job(4, LARGEST, 9.1, shrinks=True),
        job(5, LARGEST, 9.2),
    )
    first = take(jobs)
    assert (first.key, numbers(first)) == (LARGEST, [1, 4, 5])
    second = take(jobs)
    assert (second.key, numbers(second)) == (SMALLEST, [2])
    assert take(jobs).key == MIDDLE


sizes = st.sampled_from([SMALLEST, MIDDLE, LARGEST])


@given(st.lists(st.tuples(sizes, st.floats(0.0, 3.0), st.booleans()), max_size=20), st.data())
def test_every_job_runs_once_within_its_bound_or_is_late(asked, data):
    jobs = waiting(*(job(n, k, due, shrinks=s) for n, (k, due, s) in enumerate(asked)))
    now_s, seen = 0.0, []
    while len(jobs):
        group = take(jobs, now_s, unit_ms=50, max_batch=4)
        assert group.waiters
        seen += numbers(group)
        for waiter in group.waiters:
            if group.late:
                assert waiter.deadline_s < now_s + 0.05 * waiter.job.key[0]
            elif waiter.job.aim_s is None:
                assert group.key == waiter.job.key
            else:
                assert group.key <= waiter.job.key
        if not group.late:
            now_s += data.draw(st.floats(0.0, 0.5))
    assert sorted(seen) == list(range(len(asked)))


def test_the_selection_is_the_largest_in_time_and_never_above_the_bound(bundle: Bundle):
    table = LatencyTable(((bundle.min_flops, 1.0), (bundle.max_flops, 10.0)))
    selection = Selection(bundle, latency_archs(bundle), table)
    archs = sorted(bundle.archs(), key=bundle.space.flops)
    for bound in archs:
        key = arch_key(bundle.space.indices(bound).tolist())
        flops = bundle.space.flops(bound)
        assert selection.flops(key) == flops
        assert selection.within(key, 1000.0) == key
        assert selection.flops(selection.within(key, 0.0)) == bundle.min_flops
        chosen = [selection.within(key, ms) for ms in np.linspace(0.5, 12, 50)]
        assert all(selection.flops(one) <= flops for one in chosen)
        assert [selection.flops(one) for one in chosen] == sorted(map(selection.flops, chosen))
        for ms, one in zip(np.linspace(0.5, 12, 50), chosen, strict=True):
            assert selection.cost_ms(one) <= max(ms, 1.0)


def test_while_others_wait_a_resident_subnet_answers_for_one_that_is_not_built(bundle: Bundle):
    archs = sorted(set(latency_archs(bundle)), key=bundle.space.flops)
    keys = [arch_key(bundle.space.indices(arch).tolist()) for arch in archs]
    resident = {archs[0], archs[3]}
    table = LatencyTable(((bundle.min_flops, 10.0), (bundle.max_flops, 100.0)))
    selection = Selection(bundle, archs, table, resident.__contains__)
    largest = keys[-1]
    assert selection.within(largest, 1000.0) == keys[3]
    assert selection.within(keys[2], 1000.0) == keys[0]
    assert selection.within(largest, 1000.0, alone=True) == largest
    # 20 ms of building would make the largest late, not a smaller one, which is still larger than
    # what is there
    alone = selection.within(largest, 1.1 * 110.0, alone=True)
    assert bundle.space.flops(archs[3]) < selection.flops(alone) < bundle.max_flops
    for _ in range(50):
        selection.built(100.0)
    assert selection.within(largest, 1.1 * 110.0, alone=True) == keys[3]
    resident.clear()
    assert selection.within(largest, 1.1 * 50.0) not in (largest, keys[0])
