"""How many images a second, over HTTP and without it, as budgets mix?

    python -m benchmarks.serve_load --server-core 0 --load-core 1 --rounds 5 --plot serve_load.png
    python -m benchmarks.serve_load --space vit-tiny --budgets 16 256 --concurrency 32 --seconds 15
    python -m benchmarks.serve_load --against ../an-older-checkout

Budgets follow a Zipf law over so many distinct ones. Beside this server: a bare loop that decodes
and runs what is asked for with perfect knowledge of what waits (no HTTP, one process), and plain
LitServe with a ``predict`` by groups. Everything that serves runs on one core, the load on another.
Also the processor time that each takes for an image: on a machine that others use, too, this is
what can be compared.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.parts.bundles import add_bundle_options, chosen_bundle
from benchmarks.parts.load import Sample, Server, closed_loop, http_request, serving
from benchmarks.parts.plot import Panel, plot_panels
from benchmarks.parts.timing import machine
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.outputs import plot_file
from models.space.arch import Arch
from models.space.quantity import positive
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.runtimes import build_runtime

_STREAM = 2048
_MAX_BATCH = 16


def photo(side: int, seed: int) -> bytes:
    """A smooth JPEG of so many pixels a side."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def zipf_budgets(bundle: Bundle, distinct: int, count: int, seed: int) -> list[float]:
    """Budgets in random order of popularity, the k-th as often as 1/k."""
    rng = np.random.default_rng(seed)
    budgets = np.linspace(bundle.min_flops, bundle.max_flops, distinct + 1)[1:]
    rng.shuffle(budgets)
    chances = 1 / np.arange(1, distinct + 1)
    return rng.choice(budgets, count, p=chances / chances.sum()).tolist()


def bare_loop(
    bundle: Bundle, engine: Sessions, data: bytes, budgets: list[float], window: int, seconds: float
) -> tuple[float, float]:
    """Without HTTP: of each window of requests, one batch a subnet.

    Images a second, and microseconds of processor time for each.
    """
    answers = {budget: bundle.answer(budget) for budget in set(budgets)}
    archs = [answers[budget] for budget in budgets]
    preprocess, done, at = bundle.preprocess, 0, 0
    start, used = time.perf_counter(), time.process_time()
    while not done or time.perf_counter() < start + seconds:
        groups: dict[Arch, list[np.ndarray]] = {}
        for arch in archs[at : at + window]:
            side = bundle.space.resolution(arch)
            pixels = preprocess.pixels(preprocess.decode(data, side), side)
            groups.setdefault(arch, []).append(pixels)
        for arch, pixels in groups.items():
            for first in range(0, len(pixels), _MAX_BATCH):
                batch = np.stack(pixels[first : first + _MAX_BATCH])
                engine.run(arch, preprocess.normalize(batch))
        done += len(archs[at : at + window])
        at = (at + window) % (len(archs) - window + 1)
    used = time.process_time() - used
    return done / (time.perf_counter() - start), 1e6 * used / done


def figures(samples: list[Sample], seconds: float) -> dict[str, float]:
    """Rate of right answers, and percentiles of their latency."""
    good = [sample.latency_ms for sample in samples if sample.status == 200]
    if not good:
        return {"per_s": 0.0, "p50_ms": float("nan"), "p99_ms": float("nan"), "failed": 1.0}
    p50, p99 = np.percentile(good, (50, 99)).tolist()
    failed = 1 - len(good) / len(samples)
    return {"per_s": len(good) / seconds, "p50_ms": p50, "p99_ms": p99, "failed": failed}


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.serve_load", __doc__)
    add_bundle_options(parser)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--seconds", type=positive, default=3.0, help="seconds of each measurement")
    parser.add_argument(
        "--rounds", type=int, default=1, help="measure all systems in turn so often"
    )
    parser.add_argument("--photo-side", type=int, default=32, help="pixels a side of the photo")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="measure that server as well, in turn with this one",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="threads that run subnets, of this server and of that one",
    )
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=plot_file, help="write a plot to this file")
    options = parser.parse_args(arguments)
    with chosen_bundle(options) as folder:
        bundle = load_bundle(folder)
        rows = measure(bundle, folder, options)
    if not options.json:
        print_tables(bundle, rows, options.rounds)
    if options.plot is not None:
        plot(options.plot, bundle, rows)
    about = {"benchmark": "serve_load", "bundle": bundle.name, "seed": options.seed}
    cores = {"server_core": options.server_core, "load_core": options.load_core}
    print(json.dumps({**about, **cores, "rows": rows, "machine": machine()}))
    return 0


def print_tables(bundle: Bundle, rows: list[dict[str, float]], rounds: int) -> None:
    """Rates, then processor time."""
    print(f"{bundle.name}: images a second, medians of {rounds} (ms: p50, p99)")
    print(
        "budgets  at once   bare loop   this server               base64   LitServe   "
        "this / bare   base64 / LitServe"
    )
    for row in rows:
        ours = f"{row['raw_per_s']:8.0f} ({row['raw_p50_ms']:.1f}, {row['raw_p99_ms']:.1f})"
        print(
            f"{row['budgets']:7.0f} {row['concurrency']:8.0f} {row['bare_per_s']:11.0f}   "
            f"{ours:23} {row['base64_per_s']:8.0f} {row['litserve_per_s']:10.0f} "
            f"{row['raw_over_bare']:13.2f} {row['base64_over_litserve']:19.2f}"
        )
    for row in rows:
        if "against_per_s" in row:
            print(
                f"the other checkout, {row['budgets']:.0f} budgets, {row['concurrency']:.0f} at "
                f"once: {row['against_per_s']:.0f} ({row['against_p50_ms']:.1f}, "
                f"{row['against_p99_ms']:.1f}), {row['against_cpu_us']:.0f} us; this over it: "
                f"{row['raw_over_against']:.2f}"
            )
    print("processor time of an image, microseconds")
    print("budgets  at once   bare loop   this server     base64   LitServe   LitServe / base64")
    for row in rows:
        ratio = row["litserve_cpu_us"] / row["base64_cpu_us"]
        print(
            f"{row['budgets']:7.0f} {row['concurrency']:8.0f} {row['bare_cpu_us']:11.0f} "
            f"{row['raw_cpu_us']:13.0f} {row['base64_cpu_us']:10.0f} "
            f"{row['litserve_cpu_us']:10.0f} {ratio:19.2f}"
        )


def plot(path: Path, bundle: Bundle, rows: list[dict[str, float]]) -> None:
    """Rates over concurrency, a panel for each number of budgets."""
    names = {"this server": "raw", "this server, base64": "base64"}
    names |= {"plain LitServe": "litserve", "bare loop": "bare"}
    panels = [
        Panel(
            f"{distinct:.0f} distinct budget{'s' if distinct > 1 else ''}",
            "requests at once",
            "images a second",
            {
                name: [
                    (row["concurrency"], row[f"{key}_per_s"])
                    for row in rows
                    if row["budgets"] == distinct
                ]
                for name, key in names.items()
            },
            log_x=True,
        )
        for distinct in dict.fromkeys(row["budgets"] for row in rows)
    ]
    plot_panels(path, f"{bundle.name}: throughput, the server on one core", [panels])


def measure(bundle: Bundle, folder: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """A row for each number of budgets and of requests at once."""
    own = os.sched_getaffinity(0)
    server_cores = own if options.server_core is None else {options.server_core}
    load_cores = own if options.load_core is None else {options.load_core}
    data = photo(options.photo_side, options.seed)
    text = base64.b64encode(data).decode()
    engine = Sessions(bundle, build_runtime("onnxruntime", "cpu", 1), 10**12)
    ours = ["-m", "shiftnas_serve", "--bundle", str(folder), "--max-batch", str(_MAX_BATCH)]
    ours += ["--workers", str(options.workers), "--max-waiting", "1000"]
    plain = ["-m", "benchmarks.plain_litserve", "--bundle", str(folder)]
    rows = []
    with ExitStack() as stack:

        def start(command: list[str], ready: str, checkout: Path | None = None) -> Server:
            running = serving(command, ready, options.server_core, checkout)
            server = stack.enter_context(running)
            server.pause()
            return server

        ours_running, plain_running = start(ours, "/readyz"), start(plain, "/health")
        against = start(ours, "/readyz", options.against) if options.against is not None else None
        for distinct in options.budgets:
            budgets = zipf_budgets(bundle, distinct, _STREAM, options.seed)
            named = [{"FLOPs-Budget": str(int(budget))} for budget in budgets]
            jpeg, as_json = {"Content-Type": "image/jpeg"}, {"Content-Type": "application/json"}
            wrapped = json.dumps({"image": text}).encode()
            raw = [http_request("/classify", data, {**jpeg, **one}) for one in named]
            base64s = [http_request("/classify", wrapped, {**as_json, **one}) for one in named]
            plains = [
                http_request(
                    "/predict", json.dumps({"image": text, "flops": budget}).encode(), as_json
                )
                for budget in budgets
            ]
            systems = {"raw": (ours_running, raw), "base64": (ours_running, base64s)}
            systems["litserve"] = (plain_running, plains)
            if against is not None:
                systems["against"] = (against, raw)
            for concurrency in options.concurrency:
                seen: dict[str, list[float]] = {}
                for _ in range(options.rounds):
                    os.sched_setaffinity(0, server_cores)
                    bare_loop(bundle, engine, data, budgets, concurrency, 0.3)
                    rate, cpu_us = bare_loop(
                        bundle, engine, data, budgets, concurrency, options.seconds
                    )
                    one = {"bare_per_s": rate, "bare_cpu_us": cpu_us}
                    os.sched_setaffinity(0, load_cores)
                    for name, (server, requests) in systems.items():
                        server.resume()
                        closed_loop(server.port, requests, concurrency, 0.5)
                        used = server.processor_s()
                        samples, seconds = closed_loop(
                            server.port, requests, concurrency, options.seconds
                        )
                        cpu_us = 1e6 * (server.processor_s() - used) / max(len(samples), 1)
                        server.pause()
                        found = {**figures(samples, seconds), "cpu_us": cpu_us}
                        one |= {f"{name}_{key}": value for key, value in found.items()}
                    one["raw_over_bare"] = one["raw_per_s"] / one["bare_per_s"]
                    if against is not None:
                        one["raw_over_against"] = one["raw_per_s"] / one["against_per_s"]
                    one["base64_over_litserve"] = one["base64_per_s"] / one["litserve_per_s"]
                    for key, value in one.items():
                        seen.setdefault(key, []).append(value)
                medians = {key: statistics.median(values) for key, values in seen.items()}
                spread = {f"{key}_spread": max(v) - min(v) for key, v in seen.items()}
                rows.append({"budgets": distinct, "concurrency": concurrency, **medians, **spread})
    os.sched_setaffinity(0, own)
    return rows


if __name__ == "__main__":
    sys.exit(main())
