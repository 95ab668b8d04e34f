"""What does a budget cost that the server has never seen?

    python -m benchmarks.unseen_budgets
    python -m benchmarks.unseen_budgets --space vit-tiny --plot unseen_budgets.png

So many distinct budgets in random order, one at a time, to a server that has just started; then the
same once more. What the first answer took beyond the second is the price of being new. Meanwhile
/livez is asked, as a probe would: how long it takes says whether budgets hold up the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.parts.bundles import add_bundle_options, chosen_bundle
from benchmarks.parts.load import Connections, Sample, http_request, serving
from benchmarks.parts.plot import Panel, plot_panels
from benchmarks.parts.timing import machine
from benchmarks.serve_load import photo
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.outputs import plot_file

_PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PROBE_EVERY_S = 0.01


def one_by_one(port: int, requests: list[bytes]) -> tuple[list[Sample], list[Sample]]:
    """The answers, in order; and those of /livez meanwhile."""
    probes: list[Sample] = []

    async def probe(connections: Connections) -> None:
        while True:
            probes.append(await connections.ask(0, _PROBE))
            await asyncio.sleep(_PROBE_EVERY_S)

    async def run() -> list[Sample]:
        connections = Connections(port)
        probing = asyncio.create_task(probe(connections))
        answers = [await connections.ask(i, request) for i, request in enumerate(requests)]
        probing.cancel()
        return answers

    return asyncio.run(run()), probes


def requests_of(bundle: Bundle, count: int, photo_side: int, seed: int) -> list[bytes]:
    """So many budgets over the whole range, in random order."""
    budgets = np.linspace(bundle.min_flops, bundle.max_flops, count).astype(np.int64)
    shuffled = np.random.default_rng(seed).permutation(budgets).tolist()
    data, jpeg = photo(photo_side, seed), {"Content-Type": "image/jpeg"}
    return [http_request("/classify", data, {**jpeg, "FLOPs-Budget": str(b)}) for b in shuffled]


def differences(some: list[Sample], others: list[Sample]) -> np.ndarray:
    """Milliseconds by which the same requests took longer."""
    return np.array([a.latency_ms - b.latency_ms for a, b in zip(some, others, strict=True)])


def plot(path: Path, title: str, seen_ms: dict[str, np.ndarray]) -> None:
    """The share of answers that took no longer."""
    series = {
        name: [(float(np.percentile(ms, part)), float(part)) for part in range(101)]
        for name, ms in seen_ms.items()
    }
    panel = Panel("one request at a time", "latency, ms", "answers no slower, %", series)
    plot_panels(path, title, [[panel]])


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.unseen_budgets", __doc__)
    add_bundle_options(parser)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--photo-side", type=int, default=32, help="pixels a side of the photo")
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=plot_file, help="write a plot to this file")
    options = parser.parse_args(arguments)
    if options.load_core is not None:
        os.sched_setaffinity(0, {options.load_core})
    with chosen_bundle(options) as folder:
        bundle = load_bundle(folder)
        requests = requests_of(bundle, options.count, options.photo_side, options.seed)
        command = ["-m", "shiftnas_serve", "--bundle", str(folder)]
        with serving(command, "/readyz", options.server_core) as server:
            first, probes = one_by_one(server.port, requests)
            second, third = (one_by_one(server.port, requests)[0] for _ in range(2))
    unseen = np.array([sample.latency_ms for sample in first])
    # The better of two: what else the machine did is no part of the price.
    seen = np.minimum(*(np.array([s.latency_ms for s in some]) for some in (second, third)))
    again = np.array([sample.latency_ms for sample in second])
    probed = np.array([sample.latency_ms for sample in probes])
    sources = dict(Counter(sample.source for sample in first))
    found = {
        "count": len(first),
        "failed": sum(sample.status != 200 for sample in (*first, *second, *probes)),
        "unseen_p50_ms": float(np.percentile(unseen, 50)),
        "unseen_p99_ms": float(np.percentile(unseen, 99)),
        "seen_p50_ms": float(np.percentile(again, 50)),
        "seen_p99_ms": float(np.percentile(again, 99)),
        "most_beyond_ms": float((unseen - seen).max()),
        "most_seen_beyond_ms": float(np.abs(differences(second, third)).max()),
        "p99_ratio": float(np.percentile(unseen, 99) / np.percentile(again, 99)),
        "livez_p50_ms": float(np.percentile(probed, 50)),
        "livez_p99_ms": float(np.percentile(probed, 99)),
        "livez_most_ms": float(probed.max()),
        "sources": sources,
    }
    if options.plot is not None:
        plot(options.plot, f"{bundle.name}: unseen budgets", {"unseen": unseen, "seen": again})
    if not options.json:
        print(f"{bundle.name}: {len(first)} budgets, each for the first time and once more")
        print("             p50 ms   p99 ms")
        print(f"  unseen   {found['unseen_p50_ms']:8.2f} {found['unseen_p99_ms']:8.2f}   {sources}")
        print(f"  seen     {found['seen_p50_ms']:8.2f} {found['seen_p99_ms']:8.2f}")
        print(f"  unseen over seen, p99: {found['p99_ratio']:.2f}")
        print(f"  most that one took beyond the same when seen: {found['most_beyond_ms']:.1f} ms")
        print(
            f"  /livez while they were unseen, {len(probes)} times: p50 "
            f"{found['livez_p50_ms']:.2f}, p99 {found['livez_p99_ms']:.2f}, most "
            f"{found['livez_most_ms']:.2f} ms"
        )
        print(f"  (seen twice, one differs by up to {found['most_seen_beyond_ms']:.1f} ms)")
    about = {"benchmark": "unseen_budgets", "bundle": bundle.name, "seed": options.seed}
    print(json.dumps({**about, **found, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
