"""How does latency follow FLOPs? A batch through each subnet that a bundle answers.

    python -m benchmarks.latency_vs_flops --plot latency.png
    python -m benchmarks.latency_vs_flops --bundle runs/digits/bundle --points 32 --batch 1 8
    python -m benchmarks.latency_vs_flops --runtime onnxruntime torch --threads 1 2
    python -m benchmarks.latency_vs_flops --runtime onnxruntime:cuda tensorrt:cuda
    python -m benchmarks.latency_vs_flops --runtime onnxruntime openvino --precision fp32 bf16 int8

One line of the plot for each runtime, device, precision, batch and number of threads. All subnets
of all lines run in turn, so that a slow moment of the machine hits all of them alike. What cannot
run here is named with its reason and left out. Prints a table and a JSON line; ``--plot`` draws
them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.timing import Timing, machine, noise, rank_correlation, time_in_turn
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.extras import require
from models.outputs import plot_file
from models.space.arch import Arch
from shiftnas_serve.runtimes import (
    RUNTIMES,
    AbstractRuntime,
    Computing,
    build_runtime,
    graph_precision,
)


@dataclass(frozen=True)
class Line:
    """How subnets run: one line of the plot."""

    runtime: str
    device: str
    precision: Computing
    threads: int
    batch: int

    @property
    def name(self) -> str:
        """In tables and legends."""
        where = f"{self.runtime} {self.device} {self.precision}"
        return f"{where}, batch {self.batch}, {self.threads} thread(s)"

    def call(self, runtime: AbstractRuntime, bundle: Bundle, arch: Arch) -> Callable[[], object]:
        """A call that runs one batch of noise through a subnet."""
        session, images = runtime.build(bundle, arch), noise(bundle, arch, self.batch)
        return lambda: session.run(images)


def evenly_spaced(bundle: Bundle, points: int) -> list[Arch]:
    """Different answers to evenly spaced budgets, by FLOPs."""
    low, high = bundle.min_flops, bundle.max_flops
    archs = {bundle.answer(low + (high - low) * i / (points - 1)) for i in range(points)}
    return sorted(archs, key=bundle.space.flops)


def summary(line: Line, flops: Sequence[int], timings: Sequence[Timing]) -> dict[str, object]:
    """What a line says as a whole: order, range, slope."""
    medians = [timing.median_ms / line.batch for timing in timings]
    slope, offset = np.polyfit(flops, medians, 1)
    return {
        "runtime": line.runtime,
        "device": line.device,
        "precision": line.precision,
        "threads": line.threads,
        "batch": line.batch,
        "rank_correlation": round(rank_correlation(flops, medians), 4),
        "largest_over_smallest": round(medians[-1] / medians[0], 3),
        "gflops_per_s": round(1e-6 / slope, 2) if slope > 0 else None,
        "offset_ms": round(float(offset), 4),
    }


def add_what_runs(made: argparse.ArgumentParser) -> None:
    """Options: runtimes, devices, precisions."""
    made.add_argument(
        "--runtime",
        nargs="+",
        default=["onnxruntime"],
        metavar="NAME[:DEVICE]",
        help=f"of: {', '.join(RUNTIMES)} (default: onnxruntime; device: its first)",
    )
    made.add_argument(
        "--precision",
        nargs="+",
        choices=get_args(Computing),
        default=["fp32"],
        help="in what subnets compute (default: fp32)",
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_parser("benchmarks.latency_vs_flops", __doc__)
    made.add_argument("--bundle", type=Path, default=CIFAR10_CNN)
    made.add_argument("--points", type=int, default=16, help="budgets, evenly spaced")
    made.add_argument("--rounds", type=int, default=200, help="counted calls of each subnet")
    add_what_runs(made)
    made.add_argument(
        "--batch", type=int, nargs="+", default=[1], help="images that a subnet gets at once"
    )
    made.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of the runtime")
    made.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the processor's time of all threads, not what others on the machine take",
    )
    made.add_argument("--plot", type=plot_file, help="write a plot to this file")
    return made


def asked_lines(
    options: argparse.Namespace,
) -> tuple[list[tuple[Line, AbstractRuntime]], list[str]]:
    """What can run here, and why the rest cannot. Raises ValueError where nothing can."""
    found: list[tuple[Line, AbstractRuntime]] = []
    passed: list[str] = []
    for asked, precision, threads in product(options.runtime, options.precision, options.threads):
        name, _, device = asked.partition(":")
        if name not in RUNTIMES:
            raise ValueError(f"--runtime {asked}: there are: {', '.join(RUNTIMES)}")
        device = device or RUNTIMES[name].devices[0]
        try:
            runtime = build_runtime(name, device, threads, precision=precision)
        except ValueError as error:
            passed.append(f"{name} {device} {precision}: {error}")
            continue
        found += [
            (Line(name, device, precision, threads, batch), runtime) for batch in options.batch
        ]
    if not found:
        raise ValueError("; ".join(dict.fromkeys(passed)))
    return found, list(dict.fromkeys(passed))


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    options = parser().parse_args(arguments)
    if options.plot is not None:
        require("bench", "matplotlib")
    if min(options.points - 1, options.rounds, *options.batch, *options.threads) < 1:
        raise ValueError("--points takes at least 2; --rounds, --batch and --threads at least 1")
    bundle = load_bundle(options.bundle)
    lines, passed = asked_lines(options)
    archs = evenly_spaced(bundle, options.points)
    at = {line.precision: bundle.at(graph_precision(line.precision)) for line, _ in lines}
    calls = [
        line.call(runtime, at[line.precision], arch) for line, runtime in lines for arch in archs
    ]
    clock = time.process_time if options.cpu_time else time.perf_counter
    all_timings = time_in_turn(calls, rounds=options.rounds, clock=clock)
    flops = [bundle.space.flops(arch) for arch in archs]
    of_line = {
        line: all_timings[place * len(archs) : (place + 1) * len(archs)]
        for place, (line, _) in enumerate(lines)
    }
    title = f"{bundle.name}, {machine()['cpu']}, median of {options.rounds} rounds in turn"
    if options.cpu_time:
        title += ", the processor's time"
    if options.plot is not None:
        # here, so that the rest runs without matplotlib
        from benchmarks.parts.plot import Panel, plot_panels

        series = {
            line.name: [
                (f / 1e6, timing.median_ms / line.batch)
                for f, timing in zip(flops, timings, strict=True)
            ]
            for line, timings in of_line.items()
        }
        axes = "MFLOPs (multiply-adds) of the subnet", "milliseconds an image"
        plot_panels(options.plot, title, [[Panel("", *axes, series)]])
    result = {
        "benchmark": "latency_vs_flops",
        "bundle": bundle.name,
        "version": bundle.version,
        "rounds": options.rounds,
        "clock": clock.__name__,
        "lines": [
            {
                **summary(line, flops, timings),
                "rows": [
                    {
                        "id": bundle.space.arch_id(arch),
                        "flops": bundle.space.flops(arch),
                        "median_ms": round(timing.median_ms, 4),
                        "p10_ms": round(timing.p10_ms, 4),
                        "p90_ms": round(timing.p90_ms, 4),
                    }
                    for arch, timing in zip(archs, timings, strict=True)
                ],
            }
            for line, timings in of_line.items()
        ],
        "not_run": passed,
        "plot": None if options.plot is None else str(options.plot),
        "machine": machine(),
    }
    if not options.json:
        print(title)
        for line, timings in of_line.items():
            told = summary(line, flops, timings)
            print(f"\n{line.name}\nsubnet          MFLOPs   median ms      10-90 % ms")
            for arch, timing in zip(archs, timings, strict=True):
                spread = f"{timing.p10_ms:.3f} - {timing.p90_ms:.3f}"
                print(
                    f"{bundle.space.arch_id(arch)}  {bundle.space.flops(arch) / 1e6:8.3f}  "
                    f"{timing.median_ms:10.3f}  {spread:>14}"
                )
            print(
                f"rank correlation of latency with FLOPs {told['rank_correlation']:.3f}; the "
                f"largest takes {told['largest_over_smallest']:.2f}x the smallest"
            )
        for reason in passed:
            print(f"\nnot run: {reason}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
