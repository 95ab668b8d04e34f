"""Whose image is decoded next, and whose is not: threads that wait for the test, no clocks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from models.images.header import ImageError, ImageHeader
from shiftnas_serve.decoding import Decoding, Work, decode_work
from shiftnas_serve.problem import Problem

ITEM = Work("test", 1.0)
FOREVER_S = 60.0


async def stays() -> None:
    await asyncio.Event().wait()


class Desk:
    """A queue whose two threads are taken until they may go on."""

    def __init__(self) -> None:
        self.decoding = Decoding()
        self.go_on = threading.Event()
        self.done: list[str] = []
        self.holding: list[asyncio.Task[None]] = []

    def hold(self) -> None:
        self.go_on.wait(20)

    async def take_threads(self) -> None:
        for _ in range(2):
            self.holding.append(self.ask(self.hold))
        await asyncio.sleep(0)

    def ask(
        self,
        do: Callable[[], None],
        due_s: float = FOREVER_S,
        work: Work = ITEM,
        gone: Callable[[], Awaitable[None]] = stays,
    ) -> asyncio.Task[None]:
        waiting = self.decoding.run(do, work, time.monotonic() + due_s, gone)
        return asyncio.ensure_future(waiting)

    def named(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)


@contextmanager
def opened() -> Iterator[Desk]:
    desk = Desk()
    try:
        yield desk
    finally:
        desk.go_on.set()
        desk.decoding.close()


async def refused(asked: asyncio.Task[None]) -> int:
    with pytest.raises(Problem) as caught:
        await asked
    return caught.value.status


def test_the_most_urgent_image_is_next():
    async def run(desk: Desk) -> None:
        await desk.take_threads()
        asked = [desk.ask(desk.named(name), due_s) for name, due_s in (("c", 50), ("a", 30))]
        await asyncio.sleep(0)
        asked.append(desk.ask(desk.named("b"), 40))
        await asyncio.sleep(0)
        assert desk.decoding.waiting == 3
        # one thread alone, or two of them might end in either order
        desk.decoding._running.append(desk.decoding._running[0])
        desk.go_on.set()
        await asyncio.gather(*asked)
        assert desk.done == ["a", "b", "c"]

    with opened() as desk:
        asyncio.run(run(desk))


def test_waiting_ends_at_the_deadline_and_nothing_is_decoded_for_it():
    async def run(desk: Desk) -> None:
        await desk.take_threads()
        assert await refused(desk.ask(desk.named("late"), 0.01)) == 504
        assert desk.decoding.waiting == 0
        desk.go_on.set()
        await asyncio.gather(*desk.holding)
        await desk.ask(desk.named("next"))
        assert desk.done == ["next"]

    with opened() as desk:
        asyncio.run(run(desk))


def test_waiting_ends_at_the_deadline_also_for_what_has_begun():
    """It cannot be stopped, but nobody need wait for it; its thread is free when it is done."""

    async def run(desk: Desk) -> None:
        assert await refused(desk.ask(desk.hold, 0.01)) == 504
        await desk.take_threads()  # one of them is still taken
        assert desk.decoding.waiting == 1
        desk.go_on.set()
        await asyncio.gather(*desk.holding)

    with opened() as desk:
        asyncio.run(run(desk))


def test_nothing_is_decoded_for_clients_that_have_gone():
    async def run(desk: Desk) -> None:
        await desk.take_threads()
        left = asyncio.Event()

        async def leaves() -> None:
            await left.wait()

        asked = desk.ask(desk.named("gone"), gone=leaves)
        await asyncio.sleep(0)
        left.set()
        assert await refused(asked) == 499
        cancelled = desk.ask(desk.named("cancelled"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert desk.decoding.waiting == 0
        desk.go_on.set()
        await asyncio.gather(*desk.holding)
        assert desk.done == []

    with opened() as desk:
        asyncio.run(run(desk))


def test_a_turn_that_would_end_too_late_goes_to_the_next_but_not_to_nobody():
    async def run(desk: Desk) -> None:
        await desk.take_threads()
        hopeless = desk.ask(desk.named("hopeless"), 20, Work("slow", 100_000.0))
        behind = desk.ask(desk.named("behind"), 40)
        await asyncio.sleep(0)
        desk.go_on.set()
        assert await refused(hopeless) == 504
        await behind
        await asyncio.gather(*desk.holding)
        await desk.ask(desk.named("alone"), 20, Work("slow", 100_000.0))
        assert desk.done == ["behind", "alone"]

    with opened() as desk:
        asyncio.run(run(desk))


def test_a_wait_is_what_is_due_before_over_the_threads():
    async def run(desk: Desk) -> None:
        decoding, now = desk.decoding, time.monotonic()
        assert decoding.wait_ms(now + 9) == 0
        await desk.take_threads()
        for one in decoding._running:
            one.begun_s, one.ms = now, 1e9
        running_ms = 1e9
        asked = [desk.ask(desk.named(""), due_s, Work("", 4000.0)) for due_s in (30, 40, 50)]
        await asyncio.sleep(0)
        for due_s, ahead_ms in ((20, 0), (35, 2000), (45, 4000), (60, 6000)):
            wait_ms = decoding.wait_ms(now + due_s)
            assert ahead_ms - 1000 < wait_ms - running_ms <= ahead_ms
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert decoding.wait_ms(now + 60) <= running_ms
        desk.go_on.set()
        await asyncio.gather(*desk.holding)
        assert decoding.wait_ms(now + 60) == 0

    with opened() as desk:
        asyncio.run(run(desk))


def test_errors_are_those_of_the_decoder_and_leave_its_thread_free():
    def damaged() -> None:
        raise ImageError("damaged", 422)

    async def run(desk: Desk) -> None:
        for _ in range(3):
            with pytest.raises(ImageError, match="damaged"):
                await desk.ask(damaged)
        await desk.ask(desk.named("sound"))
        assert desk.done == ["sound"]

    with opened() as desk:
        asyncio.run(run(desk))


def test_what_work_takes_is_learnt_for_each_kind():
    large = decode_work(ImageHeader("PNG", 5000, 5000), 1_000_000)
    assert large.ms > decode_work(ImageHeader("PNG", 500, 500), 1_000_000).ms
    assert large.ms > decode_work(ImageHeader("PNG", 5000, 5000), 1_000).ms
    with opened() as desk:
        decoding = desk.decoding
        assert decoding.expected_ms(large) == large.ms
        decoding._learn(large, 3 * large.ms)
        assert decoding.expected_ms(large) == pytest.approx(3 * large.ms)
        for _ in range(100):
            decoding._learn(large, large.ms / 2)
        assert decoding.expected_ms(large) == pytest.approx(large.ms / 2, rel=0.01)
        decoding._learn(large, 1e9 * large.ms)  # a machine that was asleep
        assert decoding.expected_ms(large) < 6 * large.ms
        assert decoding.expected_ms(Work("JPEG", 7.0)) == 7.0
