"""How many answers are right and in time, as load grows past what the largest subnet can take?

    python -m benchmarks.slo
    python -m benchmarks.slo --published attentivenas --cv2 1 4 8 --plot slo.png
    python -m benchmarks.slo --trace arrivals.txt --server-core 0 --load-core 1 --rounds 3

Open loop: requests come when they come, in multiples of the capacity of the largest subnet. This
server chooses subnets by ``Latency-Budget``; beside it one with the same deadline runs fixed
subnets: it refuses and drops what would be late, as this one does. Plain LitServe with the largest
subnet knows no deadlines. Effective accuracy: the table's accuracy of the subnet that answered, 0
for an answer that was late or refused. Attainment: the share of requests answered in time, by the
client's clock.

It takes a network beside whose inference HTTP is small, and whose table has accuracies, to show
anything. ``--published attentivenas`` makes one of AttentiveNAS's A0 to A6: they run as long as the
real ones and score what was published, though the weights are random.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypedDict

import httpx
import numpy as np

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.load import (
    Sample,
    Server,
    arrivals,
    closed_loop,
    http_request,
    open_loop,
    recorded,
    serving,
)
from benchmarks.parts.plot import Panel, plot_panels
from benchmarks.parts.timing import machine
from benchmarks.serve_load import photo
from models.bundle.folder import Bundle, FrontierRow, load_bundle
from models.command import command_parser, tells_mistakes
from models.outputs import plot_file
from models.space.quantity import positive


class Found(TypedDict):
    """What was measured."""

    alone_ms: float
    capacity_per_s: float
    slo_ms: float
    rows: list[dict[str, Any]]
    comparison: list[dict[str, Any]]


_BUILT_WITHIN_S = 60.0
_LOADS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
OURS, LITSERVE = "this server", "plain LitServe"
_FIGURES = ("attainment", "effective_accuracy", "accuracy_in_time", "mean_mflops", "shed")
# A fixed subnet within so much of our attainment attains as much.
_EQUAL = 0.002


def accuracy_of(bundle: Bundle) -> dict[int, float]:
    """Held-out accuracy by the subnet's FLOPs, from the bundle's table."""
    measured = {row.flops: row.held_out_accuracy for row in bundle.frontier}
    if any(accuracy is None for accuracy in measured.values()):
        raise ValueError(f"the table of {bundle.name} has no accuracies; train it first")
    return {flops: accuracy or 0.0 for flops, accuracy in measured.items()}


def expected_accuracy(table: dict[int, float], flops: int) -> float:
    """Of a subnet between two rows of the table: between theirs."""
    known = sorted(table)
    return float(np.interp(flops, known, [table[one] for one in known]))


def judged(samples: list[Sample], table: dict[int, float], slo_ms: float) -> dict[str, float]:
    """What came of a load. Samples that name no subnet were answered by the largest."""
    in_time = [s for s in samples if s.status == 200 and s.latency_ms <= slo_ms]
    refused = [s.latency_ms for s in samples if s.status == 429]
    served = [s.served_flops or max(table) for s in samples if s.status == 200]
    right = sum(expected_accuracy(table, s.served_flops or max(table)) for s in in_time)
    return {
        "requests": len(samples),
        "attainment": len(in_time) / len(samples),
        "effective_accuracy": right / len(samples),
        "accuracy_in_time": right / len(in_time) if in_time else 0.0,
        "mean_mflops": float(np.mean(served)) / 1e6 if served else 0.0,
        "shed": len(refused) / len(samples),
        "shed_p99_ms": float(np.percentile(refused, 99)) if refused else 0.0,
        "too_late": sum(s.status == 504 for s in samples) / len(samples),
        "failed": sum(s.status not in (200, 429, 504) for s in samples) / len(samples),
    }


def fixed_rows(bundle: Bundle, count: int) -> list[FrontierRow]:
    """Rows of the table for the fixed subnets, ends included."""
    places = np.linspace(0, len(bundle.frontier) - 1, min(count, len(bundle.frontier)))
    return [bundle.frontier[place] for place in places.round().astype(int).tolist()]


def summarized(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Means over rounds; of the figures that are compared also the spread, most less least."""
    means = {key: float(np.mean([one[key] for one in rounds])) for key in rounds[0]}
    spread = {key: max(x[key] for x in rounds) - min(x[key] for x in rounds) for key in _FIGURES}
    return {**means, **{f"{key}_spread": value for key, value in spread.items()}}


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """This server against the fixed subnets at each load, in the terms of SuperServe (NSDI'25).

    Points of accuracy (of answers in time) beyond the most accurate fixed subnet that attains as
    much; attainment over that of the best fixed subnet that is as accurate. None where no fixed
    subnet is. ``margin``: effective accuracy beyond the best fixed subnet's.
    """
    found = []
    for burst, load in dict.fromkeys((row["cv2"], row["load"]) for row in rows):
        here = [row for row in rows if (row["cv2"], row["load"]) == (burst, load)]
        (ours,) = (row for row in here if row["system"] == OURS)
        fixed = [row for row in here if row["system"].startswith("fixed")]
        plain = [row for row in here if row["system"] == LITSERVE]
        as_timely = [r for r in fixed if r["attainment"] >= ours["attainment"] - _EQUAL]
        as_accurate = [r for r in fixed if r["accuracy_in_time"] >= ours["accuracy_in_time"] - 1e-4]
        accuracy = max((r["accuracy_in_time"] for r in as_timely), default=None)
        attainment = max((r["attainment"] for r in as_accurate), default=None)
        best = max(row["effective_accuracy"] for row in fixed)
        found.append(
            {
                "cv2": burst,
                "load": load,
                "attainment": ours["attainment"],
                "margin": ours["effective_accuracy"] - best,
                "points_at_equal_attainment": None
                if accuracy is None
                else 100 * (ours["accuracy_in_time"] - accuracy),
                "attainment_ratio_at_equal_accuracy": None
                if not attainment
                else ours["attainment"] / attainment,
                "attainment_ratio_to_litserve": ours["attainment"] / plain[0]["attainment"]
                if plain and plain[0]["attainment"]
                else None,
            }
        )
    return found


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.slo", __doc__)
    parser.add_argument(
        "--bundle", type=Path, help="a bundle's folder (default: the one in the repository)"
    )
    parser.add_argument(
        "--published",
        metavar="SPACE",
        help="take the published subnets of this space; kept in --bundle if that is given",
    )
    parser.add_argument(
        "--slo-ms",
        type=positive,
        default=None,
        help="latency budget (default: 10 times a lone answer)",
    )
    parser.add_argument("--loads", type=positive, nargs="+", default=list(_LOADS))
    parser.add_argument("--seconds", type=positive, default=5.0, help="seconds of each load")
    parser.add_argument(
        "--rounds", type=int, default=1, help="measure all systems in turn so often"
    )
    parser.add_argument(
        "--cv2",
        type=float,
        nargs="+",
        default=[1.0],
        help="squared variation of the gaps between requests; 1 is Poisson",
    )
    parser.add_argument(
        "--trace", type=Path, help="file of recorded arrivals, the seconds of one on each line"
    )
    parser.add_argument("--fixed", type=int, default=4, help="fixed subnets to compare with")
    parser.add_argument("--no-litserve", action="store_true", help="leave plain LitServe out")
    parser.add_argument("--photo-side", type=int, default=32, help="pixels a side of the photo")
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=plot_file, help="write a plot to this file")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = bundle_folder(options, stack)
        bundle = load_bundle(folder)
        found = measure(bundle, folder, accuracy_of(bundle), options)
    if not options.json:
        print_table(bundle, found)
    if options.plot is not None:
        plot(options.plot, bundle, found)
    about = {"benchmark": "slo", "bundle": bundle.name, "seed": options.seed}
    settings = {"seconds": options.seconds, "rounds": options.rounds}
    print(json.dumps({**about, **settings, **found, "machine": machine()}))
    return 0


def bundle_folder(options: argparse.Namespace, stack: contextlib.ExitStack) -> Path:
    """The bundle to serve; made first where ``--published`` asks for one that is not there."""
    if options.published is None:
        return options.bundle or CIFAR10_CNN
    folder = options.bundle
    if folder is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / options.published
    if not (folder / "bundle.json").exists():
        from benchmarks.parts.untrained import write_published  # takes torch, and a minute

        print(f"writing {options.published} with random weights", file=sys.stderr)
        write_published(options.published, folder, options.seed)
    return folder


def measure(
    bundle: Bundle, folder: Path, table: dict[int, float], options: argparse.Namespace
) -> Found:
    """Capacity, then every system at every load, in turn."""
    data = photo(options.photo_side, options.seed)
    jpeg = {"Content-Type": "image/jpeg"}
    largest = [http_request("/classify", data, {**jpeg, "FLOPs-Budget": str(bundle.max_flops)})]
    ours = ["-m", "shiftnas_serve", "--bundle", str(folder), "--session-bytes", "2000000000"]
    if options.load_core is not None:
        os.sched_setaffinity(0, {options.load_core})
    with contextlib.ExitStack() as stack:

        def start(ready: str, *command: str) -> Server:
            return stack.enter_context(serving(command, ready, options.server_core))

        adaptive = start("/readyz", *ours)
        closed_loop(adaptive.port, largest, 1, 1.0)
        alone, _ = closed_loop(adaptive.port, largest, 1, options.seconds / 2)
        alone_ms = float(np.median([sample.latency_ms for sample in alone]))
        many, seconds = closed_loop(adaptive.port, largest, 16, options.seconds / 2)
        capacity = sum(sample.status == 200 for sample in many) / seconds
        slo_ms = options.slo_ms or 10 * alone_ms
        fixed = start("/readyz", *ours, "--timeout-s", str(slo_ms / 1000))
        budget = {**jpeg, "Latency-Budget": f"{slo_ms:.3f}"}
        systems = {OURS: (adaptive, http_request("/classify", data, budget))}
        for row in fixed_rows(bundle, options.fixed):
            named = {**jpeg, "FLOPs-Budget": str(int(row.budget_flops))}
            one = http_request("/classify", data, named)
            systems[f"fixed {row.flops / 1e6:.2f} M"] = (fixed, one)
        if not options.no_litserve:
            command = ["-m", "benchmarks.plain_litserve", "--bundle", str(folder)]
            text = base64.b64encode(data).decode()
            body = json.dumps({"image": text, "flops": bundle.max_flops}).encode()
            one = http_request("/predict", body, {"Content-Type": "application/json"})
            systems[LITSERVE] = (start("/health", *command), one)
        for server, request in systems.values():
            closed_loop(server.port, [request], 1, 1.0)
        for server in (adaptive, fixed):
            wait_until_built(server.port)
        for server in {server.pid: server for server, _ in systems.values()}.values():
            server.pause()
        rows: list[dict[str, Any]] = []
        for burst in ["trace"] if options.trace is not None else options.cv2:
            for load in options.loads:
                seen: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
                for turn in range(options.rounds):
                    moments = moments_of(options, burst, load * capacity, options.seed + turn)
                    for name, (server, request) in systems.items():
                        server.resume()
                        samples = open_loop(server.port, [request], moments)
                        server.pause()
                        seen[name].append(judged(samples, table, slo_ms))
                about = {"cv2": burst, "load": load}
                rows += [{**about, "system": n, **summarized(found)} for n, found in seen.items()]
    return {
        "alone_ms": alone_ms,
        "capacity_per_s": capacity,
        "slo_ms": slo_ms,
        "rows": rows,
        "comparison": compared(rows),
    }


def wait_until_built(port: int) -> None:
    """Until no session has been built for a second: what a load finds has been there a while."""
    resident, since = -1, time.monotonic()
    end = since + _BUILT_WITHIN_S
    while time.monotonic() < min(since + 1.0, end):
        now = len(httpx.get(f"http://127.0.0.1:{port}/budgets").json()["resident"])
        if now != resident:
            resident, since = now, time.monotonic()
        time.sleep(0.1)


def moments_of(
    options: argparse.Namespace, burst: float | str, rate_per_s: float, seed: int
) -> list[float]:
    """When requests come, in seconds."""
    if options.trace is not None:
        return recorded(options.trace, rate_per_s, options.seconds)
    return arrivals(rate_per_s, options.seconds, float(burst), seed)


def print_table(bundle: Bundle, found: Found) -> None:
    """What was measured, for people; what it means comes last."""
    print(
        f"{bundle.name}: largest subnet alone {found['alone_ms']:.2f} ms, capacity "
        f"{found['capacity_per_s']:.1f}/s, to be answered within {found['slo_ms']:.1f} ms"
    )
    if bundle.name.startswith("published"):
        print("accuracies are those published for these subnets; the weights here are random")
    print("mean over rounds (spread), %")
    print(
        "CV^2   load  system             in time         right, in time  of those    MFLOPs   shed"
        "   429 p99, ms"
    )
    for row in found["rows"]:
        in_time, right = (
            f"{100 * row[key]:6.2f} ({100 * row[f'{key}_spread']:.2f})"
            for key in ("attainment", "effective_accuracy")
        )
        print(
            f"{row['cv2']!s:5}  {row['load']:4.2f}  {row['system']:17}  {in_time:14}  {right:14} "
            f"{100 * row['accuracy_in_time']:8.2f} {row['mean_mflops']:9.2f} "
            f"{100 * row['shed']:6.2f} {row['shed_p99_ms']:13.1f}"
        )
    print("this server against the fixed subnets, at each load")
    print(
        "CV^2   load  right, in time: points beyond the best   points at equal attainment   "
        "attainment at equal accuracy   attainment over plain LitServe's"
    )
    for row in found["comparison"]:
        points = row["points_at_equal_attainment"]
        ratios = (row["attainment_ratio_at_equal_accuracy"], row["attainment_ratio_to_litserve"])
        gained = "none attains it" if points is None else f"{points:+.2f}"
        same, plain = ("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios)
        print(
            f"{row['cv2']!s:5}  {row['load']:4.2f}  {100 * row['margin']:+39.2f}   "
            f"{gained:>26}   {same:>28}   {plain:>32}"
        )
    upto = [row["attainment"] for row in found["comparison"] if row["load"] <= 1]
    if upto:
        print(
            f"least attainment up to the capacity {100 * min(upto):.2f} % (target 99); "
            f"least margin {100 * min(row['margin'] for row in found['comparison']):+.2f} points "
            "(target: above 0 at every load)"
        )
    for key, unit, target in (
        ("points_at_equal_attainment", " points", "+4"),
        ("attainment_ratio_at_equal_accuracy", "x", "2.5x"),
        ("attainment_ratio_to_litserve", "x", "2.5x"),
    ):
        values = [row[key] for row in found["comparison"] if row[key] is not None]
        if values:
            print(f"most {key.replace('_', ' ')}: {max(values):.2f}{unit} (target {target})")


def plot(path: Path, bundle: Bundle, found: Found) -> None:
    """Attainment and effective accuracy against load, a row of panels for each kind of bursts."""
    panels = []
    for burst in dict.fromkeys(row["cv2"] for row in found["rows"]):
        kind = "recorded arrivals" if burst == "trace" else f"gaps with CV² = {burst:g}"
        row_of = []
        for key, label in (
            ("attainment", "answered in time, %"),
            ("effective_accuracy", "right and in time, %"),
        ):
            series: dict[str, list[tuple[float, float]]] = {}
            for row in found["rows"]:
                if row["cv2"] == burst:
                    point = (row["load"], 100 * row[key])
                    series.setdefault(row["system"], []).append(point)
            row_of.append(Panel(kind, "load / capacity of the largest subnet", label, series))
        panels.append(row_of)
    title = f"{bundle.name}: to be answered within {found['slo_ms']:.0f} ms"
    plot_panels(path, title, panels)


if __name__ == "__main__":
    sys.exit(main())
