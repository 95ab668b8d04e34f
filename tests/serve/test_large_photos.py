"""Large photos wait their turn, and leave in time: a classifier of our own, without a server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from models.bundle.folder import Bundle
from models.images.preprocess import Preprocess
from shiftnas_serve.classify import Classifier, is_long
from shiftnas_serve.decoding import Decoding
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.planner import Planner
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings
from tests.serve.conftest import encoded, picture


class Silent:
    """A client that waits without end, or has gone."""

    def __init__(self, gone: bool = False) -> None:
        self._gone = gone

    async def receive(self) -> dict[str, object]:
        if not self._gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}


def asked_by(*, gone: bool = False) -> Any:
    return Silent(gone)


@contextmanager
def own_classifier(bundle: Bundle, sent: list[str] | None = None) -> Iterator[Classifier]:
    """Whose workers have nothing to do, and refuse what they are sent with 503."""

    async def busy(**job: Any) -> None:
        if sent is not None:
            sent.append(job["subnet_id"])
        raise Problem(503, "nobody is there")

    table = LatencyTable(((1e6, 1.0), (2e6, 2.0)))
    workers: Any = SimpleNamespace(latency=table, least_wait_ms=lambda due_s: 0.0, run=busy)
    planner, nothing = Planner(bundle, None), cast("Any", None)
    settings = Settings(bundle=Path())
    classifier = Classifier(bundle, planner, workers, nothing, settings, Path())
    try:
        yield classifier
    finally:
        classifier.close()


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Of large photos: begins what it is given, and ends nothing before it may go on."""
    state = SimpleNamespace(begun=0, go_on=threading.Event())
    real = Preprocess.decode

    def decode(self: Preprocess, *given: Any) -> object:
        state.begun += 1
        state.go_on.wait(20)
        return real(self, *given)

    monkeypatch.setattr(Preprocess, "decode", decode)
    yield state
    state.go_on.set()


def large_photo() -> bytes:
    return encoded(picture().resize((1000, 600)))


@pytest.mark.parametrize(("budget", "late"), [({"latency_ms": 30.0}, 504), ({"flops": 2e6}, 499)])
def test_of_more_large_photos_than_can_be_decoded_the_rest_is_shed_in_time(
    bundle: Bundle, decoder, budget, late
):
    """At their deadlines or when the clients go; and no work is done for those that left."""
    photo, sent = large_photo(), []

    async def run() -> list[int]:
        asked = [
            asyncio.ensure_future(
                classifier.classify(photo, budget, time.monotonic(), asked_by(gone=late == 499))
            )
            for _ in range(40)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        decoder.go_on.set()
        return [one.status for one in answers if isinstance(one, Problem)]

    with own_classifier(bundle, sent) as classifier:
        statuses = asyncio.run(run())
    assert len(statuses) == 40
    assert set(statuses) <= {late, 429}
    assert decoder.begun <= 2
    assert not sent


def test_those_that_are_decoded_too_late_are_not_sent_to_a_worker(bundle: Bundle, monkeypatch, png):
    """A small photo on a busy event loop: its time is over when it is decoded."""
    sent: list[str] = []
    real = Preprocess.decode

    def slow(self: Preprocess, *given: Any) -> object:
        time.sleep(0.03)
        return real(self, *given)

    monkeypatch.setattr(Preprocess, "decode", slow)
    with own_classifier(bundle, sent) as classifier:
        for latency_ms, status in ((20.0, 504), (20_000.0, 503)):
            asked = {"latency_ms": latency_ms}
            with pytest.raises(Problem) as caught:
                asyncio.run(classifier.classify(png, asked, time.monotonic(), asked_by()))
            assert caught.value.status == status
    assert len(sent) == 1


def test_a_budget_that_no_server_can_keep_is_422_however_large_the_photo(bundle: Bundle, decoder):
    asked = {"latency_ms": 1e-4}
    with own_classifier(bundle) as classifier, pytest.raises(Problem) as caught:
        asyncio.run(classifier.classify(large_photo(), asked, time.monotonic(), asked_by()))
    assert caught.value.status == 422
    assert decoder.begun == 0


def test_small_photos_wait_for_no_turn(bundle: Bundle, monkeypatch, png):
    """No task, no timer, no thread: they would take longer than the work."""

    def no_turn(*given: object, **named: object) -> None:
        raise AssertionError("a small photo waits for its turn")

    monkeypatch.setattr(Decoding, "run", no_turn)
    monkeypatch.setattr(Decoding, "wait_ms", no_turn)
    for data in (png, encoded(picture(), "JPEG")):
        for asked in ({"flops": 2e6}, {"latency_ms": 20_000.0}):
            with own_classifier(bundle) as classifier, pytest.raises(Problem) as caught:
                asyncio.run(classifier.classify(data, asked, time.monotonic(), asked_by()))
            assert caught.value.status == 503


def test_the_length_of_a_body_says_whether_its_image_waits_for_a_turn():
    for length, long in ((None, False), ("842", False), ("85333", False), ("86000", True)):
        assert is_long({} if length is None else {"content-length": length}) is long
    for strange in ("", "x", "1_0", "9" * 5000):
        assert not is_long({"content-length": strange})
