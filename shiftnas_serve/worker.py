"""Worker: what runs the subnets of one bundle.

Jobs wait (``waiting``) and run grouped by subnet in the order of deadlines. An error belongs to its
group of one subnet, never to the others. ``worker_process`` has the process and its loop.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from models.bundle.folder import Bundle, load_bundle
from models.images.preprocess import Preprocess
from models.space.arch import Arch
from shiftnas_serve.engine import Engine
from shiftnas_serve.frames import (
    Alive,
    Building,
    Done,
    Failed,
    Frame,
    Hello,
    Job,
    Late,
    Others,
    Resident,
    Unbuilt,
    pack,
)
from shiftnas_serve.inbox import Client, Inbox
from shiftnas_serve.latency import LatencyTable, measure_ms
from shiftnas_serve.planner import latency_steps
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.selection import Selection
from shiftnas_serve.settings import Settings
from shiftnas_serve.waiting import Group, Waiter, Waiting

_MEASURED_SUBNETS = 5
# Then what fails is not the subnet.
_PREBUILD_FAILURES = 3

_LOG = structlog.get_logger("shiftnas_serve.worker")


@dataclass(frozen=True)
class Loaded:
    """A bundle that is ready to run: its pinned subnets are built, its latency is measured."""

    bundle: Bundle
    engine: Engine
    selection: Selection
    runtime: dict[str, str]


def load_revision(folder: Path, settings: Settings, *, busy: bool = False) -> Loaded:
    """Load and prepare a bundle. Raises what is wrong with it or with the runtime.

    ``busy``: whether this process runs another meanwhile.
    """
    bundle = load_bundle(folder)
    runtime = build_runtime(
        settings.runtime, settings.device, settings.threads, settings.engine_cache
    )
    pinned = [bundle.answer(budget) for budget in settings.pinned_flops]
    engine = Engine(bundle, runtime, settings.session_bytes, pinned)
    for arch in pinned:
        engine.session(arch)
    # Beside other work the shortest of several runs is closest to what one takes alone.
    points = measure_latency(bundle, engine, min if busy else statistics.median)
    table = LatencyTable.of(points)
    selection = Selection(bundle, latency_archs(bundle), table, engine.is_resident)
    return Loaded(bundle, engine, selection, runtime.describe())


def measure_latency(
    bundle: Bundle, engine: Engine, pick: Callable[[Sequence[float]], float] = statistics.median
) -> tuple[tuple[float, float], ...]:
    """(FLOPs, milliseconds) of one image for a handful of subnets between the ends."""
    low, high = bundle.min_flops, bundle.max_flops
    budgets = [low + (high - low) * i / (_MEASURED_SUBNETS - 1) for i in range(_MEASURED_SUBNETS)]
    points = {}
    for arch in dict.fromkeys(bundle.answer(budget) for budget in budgets):
        side = bundle.space.resolution(arch)
        images = np.zeros((1, 3, side, side), np.float32)
        session, _ = engine.session(arch)
        ms = measure_ms(lambda: session.run(images), 0.05, pick=pick)  # noqa: B023
        points[float(bundle.space.flops(arch))] = ms
    return tuple(sorted(points.items()))


def expected_archs(bundle: Bundle) -> list[Arch]:
    """What will probably be asked for: the stored answers, or those to latency budgets."""
    return list(bundle.archs()) if bundle.answers else latency_archs(bundle)


def latency_archs(bundle: Bundle) -> list[Arch]:
    """The answers to latency budgets, each once."""
    return list(dict.fromkeys(bundle.answer(budget) for budget in latency_steps(bundle)))


def prepared(job: Job, preprocess: Preprocess, side: int) -> np.ndarray:
    """The pixels of a job for a subnet of this side: uint8 (side, side, 3)."""
    prepare = preprocess.resized if job.prepared else preprocess.pixels
    return prepare(job.pixels, side)


class SubnetRunner:
    """One revision: its sessions, the jobs that wait for them, the sessions still to build."""

    def __init__(self, revision: int, loaded: Loaded, inbox: Inbox, settings: Settings) -> None:
        self.revision = revision
        self._bundle, self._engine, self._inbox = loaded.bundle, loaded.engine, inbox
        self._selection, self._max_batch = loaded.selection, settings.max_batch
        self._hello = Hello(os.getpid(), loaded.selection.latency.points, loaded.runtime)
        self.waiting = Waiting()
        self.unbuilt = expected_archs(loaded.bundle) if settings.prebuild else []
        self._said: frozenset[str] = frozenset()
        self._changes, self._say_at_s = -1, 0.0
        self._failures = 0

    def greet(self, client: Client) -> None:
        """Tell an HTTP process that this revision is ready, and what is resident."""
        self._inbox.send(client, pack(self._hello) + pack(Resident(tuple(self._said), ())))

    def close(self) -> None:
        """Give the sessions back."""
        self._engine.close()

    def run_group(self) -> bool:
        """Run the jobs of the most urgent subnet; whether there were any."""
        group = self.waiting.take(time.monotonic(), self._selection, self._max_batch)
        if group is not None:
            self._run(group)
        return group is not None

    def build_one(self) -> None:
        """Build a session that somebody will probably ask for."""
        evictions = self._engine.evictions
        arch = self.unbuilt.pop()
        self._inbox.tell_all(Building(self._engine.build_limit_s))
        try:
            _, build_ms = self._engine.session(arch)
        # Whatever a runtime raises concerns this subnet, and nobody has asked for it yet.
        except Exception as error:  # noqa: BLE001
            self._count_failure(arch, f"{type(error).__name__}: {error}")
            return
        finally:
            self._inbox.tell_all(Alive())
        self._selection.built(build_ms)
        if self._engine.evictions > evictions:
            self.unbuilt.clear()  # memory is full; more would only push others out

    def _count_failure(self, arch: Arch, reason: str) -> None:
        self._failures += 1
        identity = self._bundle.space.arch_id(arch)
        _LOG.error("prebuild failed", subnet=identity, reason=reason)
        self._inbox.tell_one(Unbuilt(reason), self.revision)
        if self._failures == _PREBUILD_FAILURES:
            _LOG.error("prebuilding ends", failures=self._failures, left=len(self.unbuilt))
            self.unbuilt.clear()

    def _run(self, group: Group) -> None:
        if group.late:
            self._reply((one, Late(one.job.id)) for one in group.waiters)
            return
        now = time.monotonic()
        arch, flops = self._selection.arch(group.key)
        if not self._engine.is_resident(arch):
            self._inbox.tell_all(Building(self._engine.build_limit_s))
        preprocess, side = self._bundle.preprocess, self._bundle.space.resolution(arch)
        try:
            pixels = [prepared(one.job, preprocess, side) for one in group.waiters]
            images = preprocess.normalize(np.stack(pixels))
            # Said at once: a build may take long, the inference after it may not.
            done = self._engine.run(arch, images, built=lambda: self._inbox.tell_all(Alive()))
        # Whatever a runtime raises concerns this subnet: the group is told, the worker goes on.
        except Exception as error:  # noqa: BLE001
            reason = f"{type(error).__name__}: {error}"
            self._reply((one, Failed(one.job.id, reason)) for one in group.waiters)
            return
        count = len(group.waiters)
        turn_ms = 1000 * (time.monotonic() - now) - done.build_ms
        self._reply(
            (
                one,
                Done(
                    one.job.id,
                    logits,
                    1000 * (now - one.job.sent_s),
                    done.infer_ms,
                    turn_ms,
                    done.build_ms,
                    count,
                    done.source,
                    group.key,
                ),
            )
            for one, logits in zip(group.waiters, done.logits, strict=True)
        )
        # What a turn takes beside the inference is no less in the way of the next.
        turn_ms = 1000 * (time.monotonic() - now) - done.build_ms
        if done.build_ms:
            self._selection.built(done.build_ms)
        latency = self._selection.latency.observed(flops, turn_ms / count, images=count)
        self._selection.latency = latency

    def _reply(self, answers: Iterable[tuple[Waiter, Frame]]) -> None:
        by_client: dict[Client, list[bytes]] = {}
        for waiter, answer in answers:
            assert isinstance(waiter.client, Client)
            by_client.setdefault(waiter.client, []).append(pack(answer))
        several = len(self._inbox.clients(self.revision)) > 1
        for client, frames in by_client.items():
            if several:
                others_ms = self.waiting.others_ms(client, self._selection)
                frames.append(pack(Others(others_ms)))
            self._inbox.send(client, b"".join(frames))

    def say_resident(self, *, at_once: bool) -> None:
        """Tell the HTTP processes which sessions came and went."""
        # Not at every step: a list is long, and nothing depends on its being true to the moment.
        changes = self._engine.builds + self._engine.evictions
        if changes == self._changes or not (at_once or time.monotonic() >= self._say_at_s):
            return
        self._changes, self._say_at_s = changes, time.monotonic() + 0.25
        now = frozenset(self._bundle.space.arch_id(arch) for arch in self._engine.resident())
        change = Resident(tuple(now - self._said), tuple(self._said - now))
        self._inbox.tell_all(change, self.revision)
        self._said = now
