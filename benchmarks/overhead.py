"""What does the way through the server add to an image, and what does an idle server cost?

    python -m benchmarks.overhead
    python -m benchmarks.overhead --space vit-tiny --rounds 200

One request at a time, in turn with decoding the same bytes and running the same session in this
process: a small photo, and a JPEG of about 1 MB. Then the processor time of all processes of the
server while nobody asks anything.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time

import numpy as np
from PIL import Image

from benchmarks.parts.bundles import add_bundle_options, chosen_bundle
from benchmarks.parts.load import Connections, Server, http_request, serving
from benchmarks.parts.timing import machine
from benchmarks.serve_load import photo
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.runtimes import build_runtime

_IN_A_ROW = 25


def large_photo(size_bytes: int, seed: int) -> bytes:
    """A noisy JPEG of about so many bytes, of 2.85 times as many pixels."""
    side = int((2.85 * size_bytes) ** 0.5)
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    pixels = np.asarray(smooth.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    noisy = pixels + rng.normal(0, 24, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()


def in_turn(
    bundle: Bundle, engine: Sessions, server: Server, data: bytes, rounds: int
) -> dict[str, float]:
    """Milliseconds, medians: raw, over HTTP, and what is between them; also of processor time.

    One at a time, some of each in a row.
    """
    preprocess, arch = bundle.preprocess, bundle.answer(bundle.max_flops)
    side = bundle.space.resolution(arch)
    request = http_request("/classify", data, {"Content-Type": "image/jpeg"})

    def raw() -> None:
        pixels = preprocess.pixels(preprocess.decode(data, side), side)
        engine.run(arch, preprocess.normalize(pixels[None]))

    async def ask(connections: Connections) -> float:
        sample = await connections.ask(0, request)
        if sample.status != 200:
            raise ValueError(f"the server answered {sample.status}")
        return sample.latency_ms

    async def run() -> np.ndarray:
        connections = Connections(server.port)
        seen: list[tuple[float, float, float, float]] = []
        for turn in range(rounds // _IN_A_ROW + 1):
            # Some in a row, or each would find its core asleep and its caches cold.
            start, used = [time.perf_counter()], time.thread_time()
            for _ in range(_IN_A_ROW):
                raw()
                start.append(time.perf_counter())
            raw_ms = 1000 * np.diff(start)
            raw_cpu_ms = 1000 * (time.thread_time() - used) / _IN_A_ROW
            used = server.processor_s()
            http_ms = [await ask(connections) for _ in range(_IN_A_ROW)]
            cpu_ms = 1000 * (server.processor_s() - used) / _IN_A_ROW
            if turn:  # the first of everything
                seen += [(a, b, raw_cpu_ms, cpu_ms) for a, b in zip(raw_ms, http_ms, strict=True)]
        return np.array(seen)

    raw_ms, http_ms, raw_cpu_ms, cpu_ms = asyncio.run(run()).T
    return {
        "bytes": len(data),
        "raw_p50_ms": float(np.median(raw_ms)),
        "http_p50_ms": float(np.median(http_ms)),
        "over_p50_ms": float(np.median(http_ms) - np.median(raw_ms)),
        "over_p90_ms": float(np.percentile(http_ms - raw_ms, 90)),
        "raw_cpu_ms": float(np.median(raw_cpu_ms)),
        "over_cpu_ms": float(np.median(cpu_ms) - np.median(raw_cpu_ms)),
    }


def idle_share(server: Server, seconds: float) -> float:
    """The part of a core that all processes of the server use together."""
    used, start = server.processor_s(), time.perf_counter()
    time.sleep(seconds)
    return (server.processor_s() - used) / (time.perf_counter() - start)


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.overhead", __doc__)
    add_bundle_options(parser)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    parser.add_argument("--photo-side", type=int, default=32, help="pixels a side of the small one")
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    photos = {
        "small": photo(options.photo_side, options.seed),
        "1 MB": large_photo(1_000_000, options.seed),
    }
    if options.load_core is not None:
        os.sched_setaffinity(0, {options.load_core})
    with chosen_bundle(options) as folder:
        bundle = load_bundle(folder)
        engine = Sessions(bundle, build_runtime("onnxruntime", "cpu", 1), 10**12)
        command = ["-m", "shiftnas_serve", "--bundle", str(folder)]
        with serving(command, "/readyz", options.server_core) as server:
            found = {
                name: in_turn(bundle, engine, server, data, options.rounds)
                for name, data in photos.items()
            }
            idle = idle_share(server, options.idle_seconds)
    if not options.json:
        print(f"{bundle.name}, largest subnet, one request at a time, {options.rounds} rounds")
        print(
            "photo         bytes   raw p50 ms   HTTP p50 ms   over, p50   over, p90   "
            "over, processor ms"
        )
        for name, one in found.items():
            print(
                f"{name:8} {one['bytes']:10,.0f} {one['raw_p50_ms']:12.3f} "
                f"{one['http_p50_ms']:13.3f} {one['over_p50_ms']:11.3f} {one['over_p90_ms']:11.3f} "
                f"{one['over_cpu_ms']:20.3f}"
            )
        print(f"idle: {100 * idle:.2f} % of a core, all processes together")
    about = {"benchmark": "overhead", "bundle": bundle.name, "seed": options.seed}
    print(json.dumps({**about, **found, "idle_share": idle, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
