"""What does the scheduler alone make of a load: no HTTP, no noise, in virtual time?

    python -m benchmarks.slo_virtual --published attentivenas
    python -m benchmarks.slo_virtual --bundle BUNDLE --loads 1 2 4 --cv2 1 8

``benchmarks.slo`` asks the same of a real server, and gets what the machine does meanwhile into the
bargain. Here images go through the server's own queue and choice of subnets (``scheduling.turns``,
``planning.planner``), and time passes as the subnets' measured latencies say, with 8 % of
noise and ``--http-ms`` for each request, also on a machine that slows down now and then
(``--unsteady``). Fixed subnets go through the same queue.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np

from benchmarks.parts.load import arrivals
from benchmarks.parts.timing import machine
from benchmarks.slo import accuracy_of, bundle_folder, expected_accuracy, fixed_rows
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.space.arch import Arch
from models.space.quantity import positive
from shiftnas_serve.engine.model import Model, measure_latency
from shiftnas_serve.engine.result import Result
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.planning.planner import Plan, Planner, Subnet, describe
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.scheduling.backlog import Line
from shiftnas_serve.scheduling.pace import Pace
from shiftnas_serve.scheduling.pending import Pending
from shiftnas_serve.scheduling.turns import next_group

_NOISE = 0.08
_STEADY_S = 2.0
_MAX_BATCH = 16
# Refusing takes no inference, but it is not free.
_REFUSED_S = 0.0003


@dataclass(frozen=True)
class Outcome:
    """Shares of all requests: in time; right and in time; refused when they came."""

    attainment: float
    effective_accuracy: float
    shed: float


@dataclass(frozen=True)
class Machine:
    """A core: FLOPs to milliseconds, what HTTP takes, and how fast it is now (1: as measured)."""

    table: LatencyTable
    http_ms: float
    slowness: Callable[[float], float] = lambda now_s: 1.0

    def ms(self, flops: float, now_s: float) -> float:
        """What an image takes."""
        return self.table.infer_ms(flops) * self.slowness(now_s) + self.http_ms


def unsteady(seed: int, seconds: float) -> Callable[[float], float]:
    """A machine that others use, too: as measured, 1.2 or 1.6 times slower, for 2 s on average."""
    rng = np.random.default_rng(seed)
    count = int(seconds) + 100
    ends_s = np.cumsum(rng.exponential(_STEADY_S, count))
    factors = rng.choice([1.0, 1.0, 1.2, 1.6], count + 1)
    return lambda now_s: float(factors[np.searchsorted(ends_s, now_s, "right")])


class Expected(dict[Subnet, float]):
    """Accuracy by subnet, worked out once."""

    def __init__(self, accuracy: Mapping[int, float]) -> None:
        super().__init__()
        self._accuracy = dict(accuracy)

    def __missing__(self, subnet: Subnet) -> float:
        self[subnet] = expected_accuracy(self._accuracy, subnet.flops)
        return self[subnet]


def simulate(
    bundle: Bundle,
    accuracy: Mapping[int, float],
    core: Machine,
    arrivals_s: Sequence[float],
    slo_ms: float,
    fixed: Arch | None = None,
    seed: int = 0,
) -> Outcome:
    """One thread. ``fixed``: the subnet that all requests ask for, in place of a latency budget."""
    rng = np.random.default_rng(seed)
    planner = Planner(bundle, None, core.table)
    # All that the queue asks of a model.
    model = cast("Model", SimpleNamespace(planner=planner))
    expected, own = Expected(accuracy), None if fixed is None else describe(bundle, fixed)
    nobody: Future[Result] = Future()
    line, pace = Line(1), Pace()
    now_s, at, in_time, right, shed = 0.0, 0, 0, 0.0, 0

    def image(at_s: float) -> Pending:
        one = Pending(model, {}, 0, at_s, at_s + slo_ms / 1000, nobody)
        if own is None:
            one.plan, one.aim_s = planner.plan({"latency_ms": slo_ms}, 0.0), one.deadline_s
        else:
            one.plan = Plan(own, {}, degraded=False, shrinks=False)
        one.least_ms = planner.least_ms(one.plan)
        return one

    while at < len(arrivals_s) or len(line):
        if not len(line):
            now_s = max(now_s, arrivals_s[at])
        while at < len(arrivals_s) and arrivals_s[at] <= now_s:
            one = image(arrivals_s[at])
            # As ``Backlog`` does: refused where not even the smallest would be in time.
            least_s = (len(line) + 1) * one.least_ms / 1000
            if len(line) and now_s + least_s > one.deadline_s:
                shed += 1
            else:
                assert one.plan is not None
                pace.came(one.came_s, None if one.plan.shrinks else one.least_ms)
                line.add(one, one.least_ms)
            at += 1
        if not len(line):
            continue
        group = next_group(line.images(), now_s, pace, _MAX_BATCH, 1)
        line.remove(group.images)
        count = len(group.images)
        if group.subnet is None:
            now_s += _REFUSED_S * count
            continue
        flops = group.subnet.flops
        image_ms = core.ms(flops, now_s) * max(1 + _NOISE * rng.standard_normal(), 0.5)
        now_s += count * image_ms / 1000
        done = sum(one.deadline_s >= now_s for one in group.images)
        in_time += done
        right += done * expected[group.subnet]
        planner.latency = planner.latency.observed(flops, image_ms, images=count)
    total = len(arrivals_s)
    return Outcome(in_time / total, right / total, shed / total)


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.slo_virtual", __doc__)
    parser.add_argument(
        "--bundle", type=Path, help="a bundle's folder (default: the one in the repository)"
    )
    parser.add_argument("--published", metavar="SPACE", help="as in benchmarks.slo")
    parser.add_argument("--loads", type=positive, nargs="+", default=[0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--cv2", type=float, nargs="+", default=[1.0, 4.0, 8.0])
    parser.add_argument(
        "--seconds", type=positive, default=60.0, help="seconds of virtual time for each load"
    )
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--fixed", type=int, default=4, help="fixed subnets to compare with")
    parser.add_argument("--http-ms", type=float, default=2.0)
    parser.add_argument(
        "--latency-ms",
        type=positive,
        nargs=2,
        metavar=("SMALLEST", "LARGEST"),
        help="take these milliseconds and measure none: figures are the same on every machine",
    )
    parser.add_argument(
        "--unsteady", action="store_true", help="let the machine's speed vary by up to 1.6 times"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        bundle = load_bundle(bundle_folder(options, stack))
        accuracy = accuracy_of(bundle)
        if options.latency_ms is None:
            engine = Sessions(bundle, build_runtime("onnxruntime", "cpu", 1), 10**12)
            points = measure_latency(bundle, engine)
        else:
            low_ms, high_ms = options.latency_ms
            points = ((float(min(accuracy)), low_ms), (float(max(accuracy)), high_ms))
    core = Machine(LatencyTable.of(points), options.http_ms)
    alone_ms = core.ms(max(accuracy), 0.0)
    systems: dict[str, Arch | None] = {"this scheduler": None}
    systems |= {f"fixed {r.flops / 1e6:.0f} M": r.arch for r in fixed_rows(bundle, options.fixed)}
    rows = []
    for cv2 in options.cv2:
        for load in options.loads:
            for name, fixed in systems.items():
                seen = []
                for seed in range(options.seed, options.seed + options.rounds):
                    moments = arrivals(1000 * load / alone_ms, options.seconds, cv2, seed)
                    if options.unsteady:
                        core = replace(core, slowness=unsteady(seed, 2 * options.seconds))
                    one = simulate(bundle, accuracy, core, moments, 10 * alone_ms, fixed, seed)
                    seen.append((one.attainment, one.effective_accuracy, one.shed))
                attained, right, shed = np.mean(seen, axis=0).tolist()
                rows.append(
                    {
                        "cv2": cv2,
                        "load": load,
                        "system": name,
                        "attainment": attained,
                        "effective_accuracy": right,
                        "shed": shed,
                    }
                )
    if not options.json:
        print(
            f"{bundle.name}: the largest subnet takes {alone_ms:.1f} ms, ten times that is allowed"
        )
        print("CV^2   load  system            in time %   right, in time %   shed %")
        for row in rows:
            print(
                f"{row['cv2']:4.1f}   {row['load']:4.2f}  {row['system']:16} "
                f"{100 * row['attainment']:10.2f} {100 * row['effective_accuracy']:18.2f} "
                f"{100 * row['shed']:8.2f}"
            )
    about = {"benchmark": "slo_virtual", "bundle": bundle.name, "points": points}
    print(json.dumps({**about, "rows": rows, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
