"""What does each host give, and what does it cost?

    python -m benchmarks.hosts --server-core 0 --load-core 1 --rounds 3
    python -m benchmarks.hosts --hosts uvicorn litserve --processes 2

The same app, bundle and requests on every host in turn: how long until it is ready, its memory,
images a second and processor time for an image; then a kill -9, under load, of a process that runs
subnets: what was lost, and how long until all is as before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.parts.bundles import add_bundle_options, chosen_bundle
from benchmarks.parts.load import Connections, Server, closed_loop, http_request, serving
from benchmarks.parts.processes import memory_bytes, process_tree, processor_s
from benchmarks.parts.timing import machine
from benchmarks.serve_load import figures, photo, zipf_budgets
from models.bundle.folder import load_bundle
from models.command import command_parser, tells_mistakes
from models.space.quantity import positive
from shiftnas_serve.hosts import HOSTS

_AT_ONCE = (1, 32)
_STREAM = 512
_KILL_CLIENTS = 8
_RECOVERS_WITHIN_S = 60.0


async def kill_one(server: Server, request: bytes, victim: int) -> dict[str, float]:
    """What a closed loop of clients sees when a process dies, and for how long."""
    broken, silent_from = 0, time.monotonic()
    longest_s, ended = 0.0, asyncio.Event()

    async def client() -> None:
        nonlocal broken, silent_from, longest_s
        connections = Connections(server.port)
        while not ended.is_set():
            sample = await connections.ask(0, request)
            if sample.status == 200:
                longest_s = max(longest_s, time.monotonic() - silent_from)
                silent_from = time.monotonic()
            else:
                broken += 1
                await asyncio.sleep(0.02)  # as a client with some manners would

    clients = [asyncio.create_task(client()) for _ in range(_KILL_CLIENTS)]
    await asyncio.sleep(1.0)
    count, longest_s, broken = len(process_tree(server.pid)), 0.0, 0
    os.kill(victim, signal.SIGKILL)
    struck, again_s = time.monotonic(), float("nan")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as asks:
        while time.monotonic() < struck + _RECOVERS_WITHIN_S:
            await asyncio.sleep(0.05)
            left = await asyncio.to_thread(process_tree, server.pid)
            if not left:
                break  # it ends with what ran in it
            with contextlib.suppress(httpx.TransportError):
                ready = (await asks.get("/readyz", timeout=2.0)).status_code == 200
                if ready and len(left) >= count and victim not in left:
                    again_s = time.monotonic() - struck
                    break
    await asyncio.sleep(1.0)
    ended.set()
    # What the dead had in hand may be waited for until a deadline of the host's.
    _, waiting = await asyncio.wait(clients, timeout=_RECOVERS_WITHIN_S)
    for one in waiting:
        one.cancel()
    broken += len(waiting)
    return {"failed": broken, "longest_silence_s": longest_s, "well_again_s": again_s}


def wait_until_idle(pids: list[int]) -> None:
    """Subnets are built while nobody asks; that is over when a second costs little."""
    for _ in range(60):
        used = processor_s(pids)
        time.sleep(1.0)
        if processor_s(pids) - used < 0.1:
            return


def measure(
    host: str, processes: int, folder: Path, requests: list[bytes], options: argparse.Namespace
) -> dict[str, float]:
    """One host, once."""
    command = ["-m", "shiftnas_serve", "--bundle", str(folder), "--server", host]
    command += ["--processes", str(processes), "--max-waiting", "1000", "--timeout-s", "10"]
    started = time.monotonic()
    with serving(command, "/readyz", options.server_core) as server:
        found = {"ready_s": time.monotonic() - started - 1.0}  # `serving` waits a second more
        pids = process_tree(server.pid)
        wait_until_idle(pids)
        found["memory_mb"] = sum(map(memory_bytes, pids)) / 1e6
        found["processes"] = float(len(pids))
        for at_once in _AT_ONCE:
            closed_loop(server.port, requests, at_once, 1.0)
            used = processor_s(pids)
            samples, seconds = closed_loop(server.port, requests, at_once, options.seconds)
            used = processor_s(pids) - used
            found |= {f"{k}_at_{at_once}": v for k, v in figures(samples, seconds).items()}
            found[f"cpu_us_at_{at_once}"] = 1e6 * used / max(len(samples), 1)
        # The weights and the sessions are what takes memory: it has them.
        victim = max(process_tree(server.pid), key=memory_bytes)
        found |= asyncio.run(kill_one(server, requests[0], victim))
    return found


def print_table(rows: list[dict[str, Any]], rounds: int) -> None:
    """A line for each host."""
    print(f"medians of {rounds}")
    print(
        "host       processes  ready   memory   at once: 1: images/s, p50, cpu   32: images/s, cpu"
        "   kill -9: failed, silence, well again"
    )
    for row in rows:
        print(
            f"{row['host']:10} {row['processes']:9.0f} {row['ready_s']:5.1f} s "
            f"{row['memory_mb']:5.0f} MB {row['per_s_at_1']:15.0f} {row['p50_ms_at_1']:6.2f} ms "
            f"{row['cpu_us_at_1']:5.0f} us {row['per_s_at_32']:10.0f} {row['cpu_us_at_32']:6.0f} us"
            f" {row['failed']:10.0f} {row['longest_silence_s']:6.1f} s {row['well_again_s']:6.1f} s"
        )


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.hosts", __doc__)
    add_bundle_options(parser)
    parser.add_argument("--hosts", nargs="+", choices=list(HOSTS), default=list(HOSTS))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--budgets", type=int, default=16)
    parser.add_argument("--seconds", type=positive, default=3.0, help="seconds of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="measure all hosts in turn so often")
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.load_core is not None:
        os.sched_setaffinity(0, {options.load_core})
    seen: dict[tuple[str, int], list[dict[str, float]]] = {}
    with chosen_bundle(options) as folder:
        bundle = load_bundle(folder)
        jpeg = {"Content-Type": "image/jpeg"}
        requests = [
            http_request(
                "/classify", photo(32, options.seed), {**jpeg, "FLOPs-Budget": str(int(one))}
            )
            for one in zipf_budgets(bundle, options.budgets, _STREAM, options.seed)
        ]
        for _ in range(options.rounds):
            for host in options.hosts:
                for processes in options.processes:
                    one = measure(host, processes, folder, requests, options)
                    print(host, processes, json.dumps(one), file=sys.stderr)
                    seen.setdefault((host, processes), []).append(one)
    rows: list[dict[str, Any]] = [
        {"host": host, "asked": processes}
        | {key: statistics.median(one[key] for one in found) for key in found[0]}
        | {
            f"{key}_spread": max(one[key] for one in found) - min(one[key] for one in found)
            for key in found[0]
        }
        for (host, processes), found in seen.items()
    ]
    if not options.json:
        print_table(rows, options.rounds)
    about = {"benchmark": "hosts", "bundle": bundle.name, "seed": options.seed}
    cores = {"server_core": options.server_core, "load_core": options.load_core}
    print(json.dumps({**about, **cores, "rows": rows, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
