"""How a server starts, with processes that are none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from litserve.utils import WorkerSetupStatus

from shiftnas_serve.host import Host


class FakeWorker:
    def __init__(self, *, alive: bool) -> None:
        self._alive, self.ended = alive, False

    def is_alive(self) -> bool:
        return self._alive

    def terminate(self) -> None:
        self.ended = True


def starting(*workers: FakeWorker, status: str = WorkerSetupStatus.STARTING) -> Any:
    found = dict.fromkeys(["classify_0", "classify_1"], WorkerSetupStatus.STARTING)
    found["classify_0"] = status
    return SimpleNamespace(workers_setup_status=found, inference_workers=workers)


@pytest.mark.parametrize(
    ("alive", "status"),
    [(False, WorkerSetupStatus.STARTING), (True, WorkerSetupStatus.ERROR)],
)
def test_a_worker_that_cannot_start_or_dies_meanwhile_is_waited_for_no_longer(alive, status):
    """Nor do the others stay: the parent would wait for them at its end."""
    workers = FakeWorker(alive=alive), FakeWorker(alive=True)
    with pytest.raises(RuntimeError, match="could not start"):
        Host.verify_worker_status(starting(*workers, status=status))
    assert workers[1].ended


def test_one_worker_is_enough_to_begin():
    workers = FakeWorker(alive=True), FakeWorker(alive=False)
    Host.verify_worker_status(starting(*workers, status=WorkerSetupStatus.READY))
    assert not workers[0].ended
