"""How many answers are right and in time, as load grows past what the largest subnet can take?

    python -m benchmarks.slo
    python -m benchmarks.slo --cv2 4 --seconds 20 --server-core 0 --load-core 1
    python -m benchmarks.slo --trace arrivals.txt

Open loop: requests come when they come, in multiples of the capacity of the largest subnet. This
server chooses subnets by ``Latency-Budget``; beside it one with the same deadline runs fixed
subnets, and drops what is late. Effective accuracy: the table's accuracy of the subnet that
answered, 0 for an answer that was late or refused. Attainment: the share of requests answered in
time, by the client's clock. It takes a network beside whose inference HTTP is small to show
anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from benchmarks.latency_vs_flops import DEFAULT_BUNDLE
from benchmarks.load import (
    Sample,
    Server,
    arrivals,
    closed_loop,
    http_request,
    open_loop,
    recorded,
    serving,
)
from benchmarks.serve_load import photo
from benchmarks.timing import machine
from models.bundle import Bundle, FrontierRow, load_bundle


class Found(TypedDict):
    """What was measured."""

    alone_ms: float
    capacity_per_s: float
    slo_ms: float
    rows: list[dict[str, Any]]


_LOADS = (0.5, 0.75, 1.0, 1.25, 1.5)


def accuracy_of(bundle: Bundle) -> dict[int, float]:
    """Held-out accuracy by the subnet's FLOPs, from the bundle's table."""
    measured = {row.flops: row.val_accuracy for row in bundle.frontier}
    if any(accuracy is None for accuracy in measured.values()):
        raise ValueError(f"the table of {bundle.name} has no accuracies; train it first")
    return {flops: accuracy or 0.0 for flops, accuracy in measured.items()}


def expected_accuracy(table: dict[int, float], flops: int) -> float:
    """Of a subnet between two rows of the table: between theirs."""
    known = sorted(table)
    return float(np.interp(flops, known, [table[one] for one in known]))


def judged(samples: list[Sample], table: dict[int, float], slo_ms: float) -> dict[str, float]:
    """What came of a load."""
    in_time = [s for s in samples if s.status == 200 and s.latency_ms <= slo_ms]
    shed = [s.latency_ms for s in samples if s.status == 429]
    answered = [s for s in samples if s.status == 200]
    right = sum(expected_accuracy(table, sample.served_flops) for sample in in_time)
    mflops = np.mean([s.served_flops for s in answered]) / 1e6 if answered else 0.0
    return {
        "attainment": len(in_time) / len(samples),
        "effective_accuracy": right / len(samples),
        "mean_mflops": float(mflops),
        "shed": len(shed) / len(samples),
        "shed_p99_ms": float(np.percentile(shed, 99)) if shed else 0.0,
        "failed": sum(s.status not in (200, 429, 504) for s in samples) / len(samples),
    }


def fixed_rows(bundle: Bundle, count: int) -> list[FrontierRow]:
    """Rows of the table for the fixed subnets, ends included."""
    places = np.linspace(0, len(bundle.frontier) - 1, min(count, len(bundle.frontier)))
    return [bundle.frontier[place] for place in places.round().astype(int).tolist()]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument(
        "--slo-ms", type=float, default=None, help="default: 10 times a lone answer"
    )
    parser.add_argument("--loads", type=float, nargs="+", default=list(_LOADS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--cv2", type=float, default=1.0, help="of the gaps; 1 is Poisson")
    parser.add_argument("--trace", type=Path, help="recorded arrivals, a second-stamp a line")
    parser.add_argument("--fixed", type=int, default=4, help="fixed subnets to compare with")
    parser.add_argument("--photo-side", type=int, default=32, help="pixels a side of the photo")
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(arguments)
    try:
        bundle = load_bundle(options.bundle)
        found = measure(bundle, accuracy_of(bundle), options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.json:
        print(
            f"{bundle.name}: largest subnet alone {found['alone_ms']:.2f} ms, capacity "
            f"{found['capacity_per_s']:.0f}/s, to be answered within {found['slo_ms']:.1f} ms"
        )
        print("load   system             in time %   right and in time %   mean MFLOPs   shed %")
        for row in found["rows"]:
            print(
                f"{row['load']:4.2f}   {row['system']:18} {100 * row['attainment']:9.2f} "
                f"{100 * row['effective_accuracy']:21.2f} {row['mean_mflops']:13.2f} "
                f"{100 * row['shed']:8.2f}"
            )
    about = {"benchmark": "slo", "bundle": bundle.name, "seed": options.seed, "cv2": options.cv2}
    print(json.dumps({**about, **found, "machine": machine()}))
    return 0


def measure(bundle: Bundle, table: dict[int, float], options: argparse.Namespace) -> Found:
    """Capacity, then every system at every load, in turn."""
    data = photo(options.photo_side, options.seed)
    jpeg = {"Content-Type": "image/jpeg"}
    largest = [http_request("/classify", data, {**jpeg, "FLOPs-Budget": str(bundle.max_flops)})]
    ours = ["-m", "shiftnas_serve", "--bundle", str(options.bundle)]
    if options.load_core is not None:
        os.sched_setaffinity(0, {options.load_core})
    with contextlib.ExitStack() as stack:

        def start(*more: str) -> Server:
            return stack.enter_context(serving([*ours, *more], "/readyz", options.server_core))

        adaptive = start()
        closed_loop(adaptive.port, largest, 1, 1.0)
        alone, _ = closed_loop(adaptive.port, largest, 1, options.seconds / 2)
        alone_ms = float(np.median([sample.latency_ms for sample in alone]))
        many, seconds = closed_loop(adaptive.port, largest, 16, options.seconds / 2)
        capacity = sum(sample.status == 200 for sample in many) / seconds
        slo_ms = options.slo_ms or 10 * alone_ms
        fixed = start("--timeout-s", str(slo_ms / 1000))
        budget = {**jpeg, "Latency-Budget": f"{slo_ms:.3f}"}
        systems = {"this server": (adaptive, http_request("/classify", data, budget))}
        for row in fixed_rows(bundle, options.fixed):
            one = http_request(
                "/classify", data, {**jpeg, "FLOPs-Budget": str(int(row.budget_flops))}
            )
            systems[f"fixed {row.flops / 1e6:.2f} M"] = (fixed, one)
        for server in (adaptive, fixed):
            server.pause()
        rows: list[dict[str, Any]] = []
        for load in options.loads:
            rate = load * capacity
            if options.trace is not None:
                moments = recorded(options.trace, rate, options.seconds)
            else:
                moments = arrivals(rate, options.seconds, options.cv2, options.seed)
            for name, (server, request) in systems.items():
                server.resume()
                samples = open_loop(server.port, [request], moments)
                server.pause()
                rows.append({"load": load, "system": name, **judged(samples, table, slo_ms)})
    return {"alone_ms": alone_ms, "capacity_per_s": capacity, "slo_ms": slo_ms, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
