"""Model: one version of a bundle, ready to run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.bundle.folder import Bundle, load_bundle
from shiftnas_serve.answer import ModelName
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.latency import LatencyTable, measure_ms
from shiftnas_serve.planning.planner import LATENCY, Planner, check_budgets
from shiftnas_serve.runtimes import AUTO, build_runtime, graph_precision
from shiftnas_serve.runtimes.auto import pick_runtime
from shiftnas_serve.settings import EngineSettings

_MEASURED_SUBNETS = 5


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle, its sessions and its planner. ``runtime``: what really runs it.

    ``largest_side``: of the images that the largest subnet reads; photos are decoded for it.
    """

    bundle: Bundle
    sessions: Sessions
    planner: Planner
    runtime: dict[str, str]
    name: ModelName
    largest_side: int


def load_model(path: Path, settings: EngineSettings, *, busy: bool = False) -> Model:
    """Load, check, build the pinned sessions, measure. Raises ValueError with what is wrong.

    ``busy``: whether this process serves another meanwhile.
    """
    bundle = load_bundle(path).at(graph_precision(settings.precision))
    check_budgets(bundle, settings.pinned_flops, settings.default_flops)
    if settings.runtime == AUTO:
        runtime = pick_runtime(bundle, settings.threads, settings.engine_cache, settings.precision)
    else:
        runtime = build_runtime(
            settings.runtime,
            settings.device,
            settings.threads,
            settings.engine_cache,
            settings.precision,
        )
    pinned = [bundle.answer(budget) for budget in settings.pinned_flops]
    sessions = Sessions(bundle, runtime, settings.session_bytes, pinned)
    try:
        for arch in pinned:
            sessions.session(arch)
        # Beside other work the shortest of several runs is closest to what one takes alone.
        points = measure_latency(bundle, sessions, min if busy else statistics.median)
    except ValueError as error:
        raise ValueError(f"bundle {path}: {error}") from None
    # Whatever a runtime makes of a graph, what it cannot run is not to be served.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ValueError(f"bundle {path} cannot run here: {reason}") from error
    table = LatencyTable.of(points)
    if busy:  # a small subnet finds a moment in which nothing else runs, a large one does not
        table = table.bounded(*table.points[0])
    planner = Planner(bundle, settings.default_flops, table, sessions.is_resident)
    name = ModelName(bundle.name, bundle.version, settings.precision)
    largest_side = bundle.space.resolution(bundle.space.largest)
    return Model(bundle, sessions, planner, runtime.describe(), name, largest_side)


def measure_latency(
    bundle: Bundle, sessions: Sessions, pick: Callable[[Sequence[float]], float] = statistics.median
) -> tuple[tuple[float, float], ...]:
    """(FLOPs, milliseconds) of one image for a handful of subnets between the ends.

    A bundle with a table of milliseconds has one for each of its answers to them: as the table
    says, but for a factor that is measured here on a handful.

    Raises ValueError where weights are numbers, and too large to compute with.
    """
    timed = bundle.costs.get(LATENCY)
    if timed is None:
        budgets = np.linspace(bundle.min_flops, bundle.max_flops, _MEASURED_SUBNETS)
        some = [bundle.answer(float(budget)) for budget in budgets]
    else:
        places = np.linspace(0, len(timed.answers) - 1, _MEASURED_SUBNETS).astype(int)
        some = [timed.answers[place][1] for place in places]
    points = {}
    factors = []
    for arch in dict.fromkeys(some):
        side = bundle.space.resolution(arch)
        images = np.zeros((1, 3, side, side), np.float32)
        session, _ = sessions.session(arch)
        if not np.isfinite(session.run(images)).all():
            raise ValueError("its answers are not a number; the weights are damaged, train it anew")
        ms = measure_ms(lambda: session.run(images), 0.05, pick=pick)  # noqa: B023
        points[float(bundle.space.flops(arch))] = ms
        if timed is not None:
            factors.append(ms / timed.cost.value(timed.cost.of(arch)))
    if timed is not None:
        factor = pick(factors)
        points = {
            float(bundle.space.flops(arch)): factor * timed.cost.value(whole)
            for whole, arch in timed.answers
        }
    return tuple(sorted(points.items()))
