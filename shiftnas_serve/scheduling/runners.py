"""Runners: the threads that run subnets, all with one copy of the weights.

After a second without requests one of them builds sessions for answers that nobody has asked for
yet, one at a time, so that soon no budget is new. A build cannot be interrupted: whoever comes
meanwhile waits for it, if no other thread is free, and that counts (``backlog``). An error belongs
to its group of one subnet, never to others.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import structlog

from models.space.arch import Arch
from shiftnas_serve.engine.model import Model
from shiftnas_serve.engine.result import Result, Timing, make_result, softmax
from shiftnas_serve.problem import Problem, late
from shiftnas_serve.scheduling.backlog import Backlog
from shiftnas_serve.scheduling.pending import Outcome, Pending, finish
from shiftnas_serve.scheduling.steps import answered, probabilities
from shiftnas_serve.scheduling.turns import Group

_LOOK_S = 0.5
# While more waits, answers without a latency budget are held for so long, and handed over together:
# an event loop that is woken for each small subnet takes the core from the next.
_HELD_S = 0.002
# Clients that ask one after the other leave shorter gaps.
_IDLE_S = 1.0
# Then what fails is not the subnet.
_PREBUILD_FAILURES = 3

_LOG = structlog.get_logger("shiftnas_serve.runners")


class Runners:
    """``count`` threads. ``wedged`` is called with a reason when one stands still or ends early.

    That is: an inference takes longer than ``stall_s``, or a build longer than its runtime says. A
    thread cannot be ended, so there is nothing else to do with the process. Nor is there where a
    thread ends by an error of our own: nobody would run what waits.
    """

    def __init__(
        self, backlog: Backlog, count: int, stall_s: float, wedged: Callable[[str], None]
    ) -> None:
        self._backlog, self._stall_s, self._wedged = backlog, stall_s, wedged
        self._unbuilt: list[tuple[Model, Arch]] = []
        self.prebuild_failures = 0
        self._limits_s = [0.0] * count  # of what each thread does now; 0: it waits
        self._jobs = [0] * count
        self._ending = threading.Event()
        self.threads: list[threading.Thread] = []
        targets = [partial(self._serve, number) for number in range(count)]
        for name, target in zip(
            [*(f"infer-{number}" for number in range(count)), "watch"],
            [*targets, self._watch],
            strict=True,
        ):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self.threads.append(thread)
            thread.start()

    def prebuild(self, model: Model) -> None:
        """Build the sessions that will probably be asked for, and no others."""
        self._unbuilt = [(model, arch) for arch in model.planner.expected()]
        self._backlog.wake()

    def close(self) -> None:
        """No more is built; the backlog tells the threads to end."""
        self._unbuilt = []
        self._ending.set()

    def _serve(self, thread: int) -> None:
        try:
            self._serve_groups(thread)
        except Exception as error:  # noqa: BLE001 - whatever it was, who waits must not go unheard
            _LOG.exception("an inference thread has ended", thread=thread)
            self._wedged(f"inference thread {thread} has ended: {error!r:.200}")

    def _serve_groups(self, thread: int) -> None:
        held: list[Outcome] = []
        until_s = 0.0

        def patience_s() -> float:
            if held:
                return 0.0
            builds = thread == 0 and self._unbuilt
            return _IDLE_S - self._backlog.quiet_s() if builds else math.inf

        while held or not self._backlog.closed:
            group = self._backlog.next_group(thread, patience_s)
            if held and (group is None or _end_s(group) > until_s):
                finish(held)
                held = []
            if group is not None:
                if not held:
                    until_s = time.monotonic() + _HELD_S
                if any(one.aim_s is not None for one in group.images):
                    until_s = 0.0
                held += self._run(thread, group)
                del group
            elif patience_s() <= 0:
                self._build_one(thread)

    def _busy(self, thread: int, limit_s: float) -> None:
        self._limits_s[thread] = limit_s
        self._jobs[thread] += 1

    def _run(self, thread: int, group: Group) -> list[Outcome]:
        images, subnet = group.images, group.subnet
        if subnet is None:
            return [(one, one.first or _late(one)) for one in images]
        now = time.monotonic()
        model = images[0].model
        bundle, sessions = model.bundle, model.sessions
        resident = sessions.is_resident(subnet.value)
        self._busy(
            thread, self._stall_s if resident else max(self._stall_s, sessions.build_limit_s)
        )
        try:
            pixels = [_sized(one, subnet.side) for one in images]
            batch = bundle.preprocess.normalize(np.array(pixels))
            done = sessions.run(
                subnet.value, batch, built=lambda: self._busy(thread, self._stall_s)
            )
            shares = softmax(done.logits)
        # Whatever a runtime raises concerns this subnet: the group is told, the thread goes on.
        except Exception as error:  # noqa: BLE001
            problem = Problem(500, f"a subnet could not run: {type(error).__name__}: {error}")
            _LOG.error("a subnet could not run", subnet=subnet.id, reason=repr(error))
            return [(one, one.first or problem) for one in images]
        finally:
            self._busy(thread, 0.0)
        count = len(images)

        def outcome(one: Pending, logits: np.ndarray, share: np.ndarray) -> Result | Problem | None:
            assert one.plan is not None
            if math.isnan(share[0]):  # one logit that is not a number makes all of them so
                problem = Problem(500, f"subnet {subnet.id} answered what is not a number")
                _LOG.error("a subnet could not run", subnet=subnet.id, reason=problem.detail)
                return one.first or problem
            share = probabilities(one, subnet, logits, share)
            queue_ms = 1000 * (now - one.queued_s)
            timing = Timing(
                one.decode_ms, queue_ms, done.infer_ms, done.build_ms, count, done.source
            )
            timing = timing if one.first is None else timing.after(one.first.timing)
            result = make_result(model, one.plan, subnet, share, one.top_k, timing)
            return answered(one, result, self._backlog)

        rows = zip(images, done.logits, shares, strict=True)
        outcomes = [
            (one, found)
            for one, logits, share in rows
            if (found := outcome(one, logits, share)) is not None
        ]
        # All that a turn takes is in the way of the next.
        turn_ms = 1000 * (time.monotonic() - now) - done.build_ms
        planner = model.planner
        if done.build_ms:
            planner.built(done.build_ms)
        planner.latency = planner.latency.observed(subnet.pace, turn_ms / count, images=count)
        return outcomes

    def _build_one(self, thread: int) -> None:
        unbuilt = self._unbuilt
        if not unbuilt:  # taken away meanwhile
            return
        model, arch = unbuilt[-1]
        if not self._backlog.building(thread, model.planner.build_ms(arch)):
            return
        unbuilt.pop()
        sessions = model.sessions
        evictions = sessions.evictions
        self._busy(thread, max(self._stall_s, sessions.build_limit_s))
        try:
            _, build_ms = sessions.session(arch)
        # Whatever a runtime raises concerns this subnet, and nobody has asked for it yet.
        except Exception as error:  # noqa: BLE001
            self.prebuild_failures += 1
            identity = model.bundle.space.arch_id(arch)
            _LOG.error("prebuild failed", subnet=identity, reason=repr(error))
            if self.prebuild_failures >= _PREBUILD_FAILURES:
                _LOG.error("prebuilding ends", failures=self.prebuild_failures)
                self._unbuilt = []
            return
        finally:
            self._busy(thread, 0.0)
            self._backlog.built(thread)
        model.planner.built(build_ms)
        if sessions.evictions > evictions:
            self._unbuilt = []  # memory is full; more would only push others out

    def _watch(self) -> None:
        # Looks are counted, not seconds: while a machine sleeps, nobody is to blame.
        seen, looks = list(self._jobs), [0] * len(self._jobs)
        while not self._ending.wait(_LOOK_S):
            for thread, limit_s in enumerate(self._limits_s):
                same = bool(limit_s) and seen[thread] == self._jobs[thread]
                looks[thread] = looks[thread] + 1 if same else 0
                seen[thread] = self._jobs[thread]
                if looks[thread] * _LOOK_S > limit_s > 0:
                    self._wedged(f"inference thread {thread} has stood still for {limit_s:g} s")
                    return


def _end_s(group: Group) -> float:
    """When it will have run, if it runs now; late ones at once, one that must be built never."""
    if group.subnet is None:
        return 0.0
    model = group.images[0].model
    if not model.sessions.is_resident(group.subnet.value):
        return math.inf
    return time.monotonic() + len(group.images) * model.planner.cost_ms(group.subnet) / 1000


def _sized(one: Pending, side: int) -> np.ndarray:
    """uint8 (side, side, 3)."""
    assert one.pixels is not None
    preprocess = one.model.bundle.preprocess
    prepare = preprocess.resized if one.resized else preprocess.pixels
    return prepare(one.pixels, side)


def _late(one: Pending) -> Problem:
    waited_ms = 1000 * (time.monotonic() - one.came_s)
    return late(f"its turn would have come too late; it waited {waited_ms:.0f} ms")
