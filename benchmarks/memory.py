"""What does a resident subnet cost in memory, and does memory drift as subnets come and go?

    python -m benchmarks.memory
    python -m benchmarks.memory --bundle runs/vit-tiny/bundle --subnets 500 --cycles 10000

The proportional set size (PSS) of this process, after so many distinct subnets were made and ran
once, beside what the engine says it holds; then over so many subnets made and evicted.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.latency_vs_flops import DEFAULT_BUNDLE
from benchmarks.timing import machine
from models.arch import Arch
from models.bundle import Bundle, load_bundle
from shiftnas_serve.engine import Engine
from shiftnas_serve.runtimes import build_runtime


def pss_bytes() -> int:
    """The memory of this process, pages that it shares counted by its share. Linux only."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def some_archs(bundle: Bundle, count: int, seed: int) -> list[Arch]:
    """Random archs where any can be answered; the stored answers where only those can."""
    space = bundle.space
    if space.norms:
        return list(bundle.archs())[:count]
    rng = np.random.default_rng(seed)
    sizes = [len(decision.choices) for decision in space.decisions]
    drawn = (
        space.from_indices([int(rng.integers(size)) for size in sizes]) for _ in range(2 * count)
    )
    return list(dict.fromkeys(drawn))[:count]


def one_image(bundle: Bundle, arch: Arch) -> np.ndarray:
    """An image for a subnet, float32 (1, 3, side, side)."""
    side = bundle.space.resolution(arch)
    return np.zeros((1, 3, side, side), np.float32)


def resident(bundle: Bundle, archs: list[Arch]) -> dict[str, float]:
    """Megabytes that subnets take, after the first few have brought what is common to all."""
    engine = Engine(bundle, build_runtime("onnxruntime", "cpu", 1), 10**15)
    first = archs[:5]
    before = pss_bytes()
    for arch in first:
        engine.run(arch, one_image(bundle, arch))
    common, said = pss_bytes(), engine.size_bytes
    for arch in archs[5:]:
        engine.run(arch, one_image(bundle, arch))
    after = pss_bytes()
    more = len(archs) - len(first)
    return {
        "subnets": len(archs),
        "first_5_mb": (common - before) / 1e6,
        "each_more_mb": (after - common) / 1e6 / more,
        "each_more_said_mb": (engine.size_bytes - said) / 1e6 / more,
        "all_mb": (after - before) / 1e6,
        "all_said_mb": engine.size_bytes / 1e6,
    }


def cycle(bundle: Bundle, archs: list[Arch], cycles: int) -> list[float]:
    """Megabytes at tenths of so many subnets made, run once and evicted; the same one is there."""
    engine = Engine(bundle, build_runtime("onnxruntime", "cpu", 1), 1)
    archs = archs[: max(cycles // 10, 1)]
    rounds = max(cycles // len(archs), 1)
    seen = []
    for turn in range(rounds):
        for arch in archs:
            engine.run(arch, one_image(bundle, arch))
        if (turn + 1) * 10 // rounds > turn * 10 // rounds:
            seen.append(pss_bytes() / 1e6)
    return seen


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--subnets", type=int, default=500)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(arguments)
    try:
        bundle = load_bundle(options.bundle)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    archs = some_archs(bundle, options.subnets, options.seed)
    supernet_mb = sum(weight.nbytes for weight in bundle.weights.values()) / 1e6
    held = resident(bundle, archs)
    seen = cycle(bundle, archs, options.cycles)
    half = len(seen) // 2
    drift = max(seen[half:]) / max(seen[: max(half, 1)]) - 1
    if not options.json:
        print(f"{bundle.name} ({bundle.space.name}), supernet {supernet_mb:.1f} MB as float32")
        print(f"{held['subnets']:.0f} subnets resident, each run once, MB:")
        print(f"  the first 5, what is common included   {held['first_5_mb']:8.1f}")
        print(f"  each more                              {held['each_more_mb']:8.2f}")
        print(f"  each more, as the engine counts        {held['each_more_said_mb']:8.2f}")
        print(f"  all                                    {held['all_mb']:8.1f}")
        print(f"  all, as the engine counts              {held['all_said_mb']:8.1f}")
        print(f"{options.cycles} subnets made and evicted, PSS at tenths of the way, MB:")
        print("  " + " ".join(f"{one:.1f}" for one in seen))
        print(f"  the most of the second half over that of the first: {100 * drift:+.2f} %")
    about = {"benchmark": "memory", "bundle": bundle.name, "space": bundle.space.name}
    result = {**about, "supernet_mb": supernet_mb, **held, "cycles": options.cycles}
    print(json.dumps({**result, "pss_mb": seen, "drift": drift, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
