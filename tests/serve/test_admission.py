"""Who is let in: no processes, no server."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shiftnas_serve.admission import Admission
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings


class Turns:
    """As many wait to be decoded, for so long."""

    def __init__(self, waiting: int = 0, wait_ms: float = 0.0) -> None:
        self.waiting, self._wait_ms = waiting, wait_ms

    def wait_ms(self, deadline_s: float) -> float:
        return self._wait_ms


def admission(
    waiting_ms: float = 0.0,
    folder: Path = Path(),
    decoding: Turns | None = None,
    **settings: Any,
) -> Admission:
    """Where the smallest subnet takes 100 ms, and so much waits in the least busy worker."""
    decoding = decoding or Turns()
    table = LatencyTable(((1e6, 100.0), (2e6, 200.0)))
    workers: Any = SimpleNamespace(
        latency=table, least_wait_ms=lambda deadline_s: waiting_ms, ready=True
    )
    counter = SimpleNamespace(inc=lambda by=1: None)
    metrics: Any = SimpleNamespace(in_flight=counter, answered=lambda status: None)
    own = Settings(bundle=Path(), **settings)
    return Admission(workers, metrics, own, folder, 1_000_000, cast("Any", decoding))


def refused(asked: Admission, budget_ms: float, **how: Any) -> bool:
    try:
        asked.refuse_if_hopeless(time.monotonic() + budget_ms / 1000, **how)
    except Problem as problem:
        assert problem.status == 429
        assert int(problem.headers["Retry-After"]) >= 1
        return True
    return False


def test_who_comes_first_is_never_hopeless():
    """What an idle server can do in the time is the planner's to say: 422, not 429."""
    assert not refused(admission(), 1.0)


def test_what_waits_must_leave_time_for_the_smallest_and_a_margin():
    assert refused(admission(1000.0), 1000.0)
    assert refused(admission(1000.0), 1150.0)  # in time half of the time
    assert not refused(admission(1000.0), 1300.0)


def test_at_the_door_images_in_preparation_count_and_later_not_they_come_after():
    asked = admission()
    with asked.preparing(), asked.preparing():
        assert refused(asked, 250.0, at_door=True)
        assert not refused(asked, 250.0)
        assert not refused(asked, 400.0, at_door=True)
    assert not refused(asked, 250.0, at_door=True)


def test_what_waits_to_be_decoded_counts_for_those_that_must_wait_behind_it():
    asked = admission(decoding=Turns(waiting=50, wait_ms=500.0))
    assert not refused(asked, 300.0, at_door=True)  # a small photo
    assert refused(asked, 300.0, at_door=True, decode_ms=0.0)
    assert not refused(asked, 900.0, at_door=True, decode_ms=0.0)
    assert refused(asked, 900.0, decode_ms=300.0)


def test_workers_go_on_while_an_image_waits_to_be_decoded():
    asked = admission(500.0, decoding=Turns(wait_ms=400.0))
    assert not refused(asked, 800.0, decode_ms=100.0)
    assert refused(asked, 600.0, decode_ms=0.0)


def test_images_that_wait_to_be_decoded_are_not_sent_next():
    asked = admission(decoding=Turns(waiting=2))
    with asked.preparing(), asked.preparing(), asked.preparing():
        assert not refused(asked, 250.0, at_door=True)
        assert refused(asked, 200.0, at_door=True)


def test_a_free_thread_decodes_for_whoever_asks():
    """However long it takes: what is expected may be wrong, and is only learnt by doing it."""
    assert not refused(admission(), 10.0, at_door=True, decode_ms=0.0)
    assert not refused(admission(), 10.0, decode_ms=10_000.0)


def test_nothing_is_sent_when_its_time_is_over():
    with pytest.raises(Problem) as caught:
        admission().refuse_if_hopeless(time.monotonic())
    assert caught.value.status == 504


def test_a_problem_of_preparing_leaves_no_count_behind():
    asked = admission()
    with pytest.raises(ValueError, match="damaged"), asked.preparing():
        raise ValueError("damaged")
    assert not refused(asked, 1.0, at_door=True)


def asking(key: str = "") -> Any:
    headers = {"authorization": f"Bearer {key}"}
    return SimpleNamespace(scope={"state": {"headers": headers}})


def let_in(asked: Admission, request: Any, images: int = 1) -> ExitStack:
    """A request that stays until what is answered is closed."""
    with ExitStack() as stack:
        stack.enter_context(asked.admitted(request))
        stack.enter_context(asked.admitted_images(request, images))
        return stack.pop_all()


def test_each_image_of_a_request_waits_as_one():
    asked, request = admission(max_waiting=10), asking()
    first = let_in(asked, request, 6)
    with pytest.raises(Problem, match="no room for 5") as full:
        let_in(asked, request, 5)
    assert full.value.status == 429
    assert full.value.headers["Retry-After"] == "1"
    second = let_in(asked, request, 4)
    with pytest.raises(Problem, match="already") as full:
        let_in(asked, request)
    assert full.value.status == 429
    first.close()
    second.close()
    with let_in(asked, request, 10):
        assert not asked.alone
    with let_in(asked, request):
        assert asked.alone


def test_more_images_than_ever_fit_are_told_so_and_not_to_try_again(tmp_path: Path):
    asked, request = admission(max_waiting=10), asking()
    with pytest.raises(Problem, match="send 10 or fewer") as never:
        let_in(asked, request, 11)
    assert never.value.status == 400
    asked = admission(folder=tmp_path, api_keys="one", rate_per_s=0.01, rate_burst=5)
    request = asking("one")
    with pytest.raises(Problem, match="send 5 or fewer") as never:
        let_in(asked, request, 6)
    assert never.value.status == 400
    with pytest.raises(Problem, match="a second") as full:
        let_in(asked, request, 5)  # one is gone
    assert full.value.status == 429
    asked.close()
