"""What does a resident subnet cost in memory, and does memory drift as subnets come and go?

    python -m benchmarks.memory --cycles 10000
    python -m benchmarks.memory --space vit-tiny --subnets 500 --cycles 10000 --plot memory.png

The proportional set size (PSS) of this process, after so many distinct subnets were made and ran
once, beside what the engine says it holds; then what it has allocated over so many subnets made and
evicted.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.parts.bundles import add_bundle_options, chosen_bundle
from benchmarks.parts.plot import Panel, plot_panels
from benchmarks.parts.processes import memory_bytes
from benchmarks.parts.timing import machine
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.outputs import plot_file
from models.space.arch import Arch
from shiftnas_serve.engine.reload import release_memory
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.runtimes import build_runtime


def pss_bytes() -> int:
    """The memory of this process, pages that it shares counted by its share. Linux only."""
    gc.collect()
    return memory_bytes(os.getpid())


def own_bytes() -> int:
    """What it has allocated. A share of libraries rises when others that have them end."""
    gc.collect()
    return memory_bytes(os.getpid(), "Anonymous")


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


_FIRST = 5


def resident(bundle: Bundle, archs: list[Arch]) -> tuple[dict[str, float], list[list[float]]]:
    """Megabytes that subnets take, after the first few have brought what is common to all.

    Also along the way: [subnets, megabytes], some twenty times.
    """
    engine = Sessions(bundle, build_runtime("onnxruntime", "cpu", 1), 10**15)
    before, way, said = pss_bytes(), [[0.0, 0.0]], 0
    places = {_FIRST, *np.linspace(_FIRST, len(archs), 20).astype(int).tolist()}
    for count, arch in enumerate(archs, start=1):
        engine.run(arch, one_image(bundle, arch))
        if count in places:
            way.append([count, (pss_bytes() - before) / 1e6])
        if count == _FIRST:
            said = engine.size_bytes
    first_mb, all_mb = way[1][1], way[-1][1]
    more = max(len(archs) - _FIRST, 1)
    found = {
        "subnets": len(archs),
        "first_5_mb": first_mb,
        "each_more_mb": (all_mb - first_mb) / more,
        "each_more_said_mb": (engine.size_bytes - said) / 1e6 / more,
        "all_mb": all_mb,
        "all_said_mb": engine.size_bytes / 1e6,
    }
    return found, way


def cycle(bundle: Bundle, archs: list[Arch], cycles: int) -> tuple[list[float], list[float]]:
    """Allocated megabytes at tenths of so many subnets made, run once and evicted.

    The same subnet is there each time.

    As they are, and without what the allocator keeps for later: how much that is goes up and down
    with the order of sizes, and would hide a leak or feign one.
    """
    engine = Sessions(bundle, build_runtime("onnxruntime", "cpu", 1), 1)
    archs = archs[: max(cycles // 10, 1)]
    rounds = max(cycles // len(archs), 1)
    seen: list[float] = []
    needed: list[float] = []
    for turn in range(rounds):
        for arch in archs:
            engine.run(arch, one_image(bundle, arch))
        if (turn + 1) * 10 // rounds > turn * 10 // rounds:
            seen.append(own_bytes() / 1e6)
            release_memory()
            needed.append(own_bytes() / 1e6)
    return seen, needed


def plot(
    path: Path, bundle: Bundle, way: list[list[float]], cycles: int, seen: dict[str, list[float]]
) -> None:
    """What is held as subnets come, and as they come and go."""
    held = [(count, mb) for count, mb in way]
    tenths = {
        name: [(cycles * (place + 1) / len(mbs), mb) for place, mb in enumerate(mbs)]
        for name, mbs in seen.items()
    }
    panels = [
        Panel("resident", "subnets", "MB more than before", {"PSS": held}),
        Panel("made and evicted", "subnets", "MB of the process", tenths),
    ]
    plot_panels(path, f"{bundle.name}: memory", [panels])


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.memory", __doc__)
    add_bundle_options(parser)
    parser.add_argument("--subnets", type=int, default=500)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=plot_file, help="write a plot to this file")
    options = parser.parse_args(arguments)
    with chosen_bundle(options) as folder:
        empty = pss_bytes()
        bundle = load_bundle(folder)
    bundle_mb = (pss_bytes() - empty) / 1e6
    archs = some_archs(bundle, options.subnets, options.seed)
    supernet_mb = sum(weight.nbytes for weight in bundle.weights.values()) / 1e6
    held, way = resident(bundle, archs)
    seen, needed = cycle(bundle, archs, options.cycles)
    half = len(seen) // 2
    all_mb = held["all_mb"]
    drift = max(needed[half:]) / max(needed[: max(half, 1)]) - 1
    if not options.json:
        print(f"{bundle.name} ({bundle.space.name}), supernet {supernet_mb:.1f} MB as float32")
        print(f"{held['subnets']:.0f} subnets resident, each run once, MB:")
        print(f"  the first 5, what is common included   {held['first_5_mb']:8.1f}")
        print(f"  each more                              {held['each_more_mb']:8.2f}")
        print(f"  each more, as the engine counts        {held['each_more_said_mb']:8.2f}")
        print(f"  all                                    {held['all_mb']:8.1f}")
        print(f"  and the loaded bundle                  {bundle_mb:8.1f}")
        print(f"  both over the supernet                 {(all_mb + bundle_mb) / supernet_mb:8.2f}")
        print(f"  all, as the engine counts              {held['all_said_mb']:8.1f}")
        print(f"{options.cycles} subnets made and evicted, allocated at tenths of the way, MB:")
        print("  " + " ".join(f"{one:.1f}" for one in seen))
        print("without what the allocator keeps for later:")
        print("  " + " ".join(f"{one:.1f}" for one in needed))
        print(f"  the most of the second half over that of the first: {100 * drift:+.2f} %")
    about = {"benchmark": "memory", "bundle": bundle.name, "space": bundle.space.name}
    sizes = {"supernet_mb": supernet_mb, "bundle_mb": bundle_mb, **held, "way": way}
    drifted = {"cycles": options.cycles, "allocated_mb": seen, "needed_mb": needed, "drift": drift}
    if options.plot is not None:
        plot(options.plot, bundle, way, options.cycles, {"allocated": seen, "needed": needed})
    print(json.dumps({**about, **sizes, **drifted, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
