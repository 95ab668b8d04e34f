"""How does latency follow FLOPs? One image through each subnet that a bundle answers.

    python -m benchmarks.latency_vs_flops --plot latency.png
    python -m benchmarks.latency_vs_flops --bundle runs/digits/bundle --points 32 --batch 8

Subnets run in ONNX Runtime on one core of the CPU, in turn, so that a slow moment of the machine
hits all of them alike. Prints a table and a JSON line; ``--plot`` draws them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.timing import Timing, machine, rank_correlation, time_in_turn
from models.bundle.folder import Bundle, load_bundle
from models.extras import require
from models.onnx.ort import onnxruntime
from models.space.arch import Arch


def session_call(bundle: Bundle, arch: Arch, batch: int, threads: int) -> Callable[[], object]:
    """A call that runs one batch of noise through a subnet."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        bundle.build_onnx(arch).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    side = bundle.space.resolution(arch)
    images = np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)
    return lambda: session.run(["logits"], {"images": images})


def evenly_spaced(bundle: Bundle, points: int) -> list[Arch]:
    """Different answers to evenly spaced budgets, by FLOPs."""
    low, high = bundle.min_flops, bundle.max_flops
    archs = {bundle.answer(low + (high - low) * i / (points - 1)) for i in range(points)}
    return sorted(archs, key=bundle.space.flops)


def draw(path: Path, title: str, flops: list[int], timings: list[Timing], accuracy: str) -> None:
    """Median latency with its 10-90 % band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    mega = [f / 1e6 for f in flops]
    axes.fill_between(
        mega, [t.p10_ms for t in timings], [t.p90_ms for t in timings], color="#1f5fa8", alpha=0.15
    )
    axes.plot(mega, [t.median_ms for t in timings], "o-", color="#1f5fa8", markersize=4)
    axes.set(xlabel="MFLOPs (multiply-adds) of the subnet", ylabel="latency, ms", title=title)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.text(0.99, 0.02, accuracy, transform=axes.transAxes, ha="right", fontsize=8, alpha=0.7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency_vs_flops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=CIFAR10_CNN)
    parser.add_argument("--points", type=int, default=16, help="budgets, evenly spaced")
    parser.add_argument("--rounds", type=int, default=200, help="counted calls of each subnet")
    parser.add_argument("--batch", type=int, default=1, help="images in a call")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--plot", type=Path, help="write a plot to this file")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(arguments)
    try:
        if options.plot is not None:
            require("bench", "matplotlib")
        if min(options.points - 1, options.rounds, options.batch, options.threads) < 1:
            raise ValueError(
                "--points takes at least 2; --rounds, --batch and --threads at least 1"
            )
        bundle = load_bundle(options.bundle)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    archs = evenly_spaced(bundle, options.points)
    calls = [session_call(bundle, arch, options.batch, options.threads) for arch in archs]
    timings = time_in_turn(calls, rounds=options.rounds)
    flops = [bundle.space.flops(arch) for arch in archs]
    medians = [timing.median_ms for timing in timings]
    slope, offset = np.polyfit(flops, medians, 1)
    title = f"{bundle.name}, batch {options.batch}, {options.threads} thread(s)"
    if options.plot is not None:
        draw(options.plot, title, flops, timings, f"{options.rounds} rounds, median and 10-90 %")
    result = {
        "benchmark": "latency_vs_flops",
        "bundle": bundle.name,
        "version": bundle.version,
        "batch": options.batch,
        "threads": options.threads,
        "rounds": options.rounds,
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
        "rank_correlation": round(rank_correlation(flops, medians), 4),
        "largest_over_smallest": round(medians[-1] / medians[0], 3),
        "gflops_per_s": round(1e-6 / slope, 2) if slope > 0 else None,
        "offset_ms": round(float(offset), 4),
        "plot": None if options.plot is None else str(options.plot),
        "machine": machine(),
    }
    if not options.json:
        print(f"{title}; {machine()['cpu']}")
        print("subnet          MFLOPs   median ms      10-90 % ms")
        for row in result["rows"]:
            spread = f"{row['p10_ms']:.3f} - {row['p90_ms']:.3f}"
            print(f"{row['id']}  {row['flops'] / 1e6:8.3f}  {row['median_ms']:10.3f}  {spread:>14}")
        print(
            f"rank correlation of latency with FLOPs {result['rank_correlation']:.3f}; the largest "
            f"takes {result['largest_over_smallest']:.2f}x the smallest"
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
