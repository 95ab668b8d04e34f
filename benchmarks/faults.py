"""How long until everything is well again, when one of two processes of the server dies under load?

    python -m benchmarks.faults
    python -m benchmarks.faults --kills 10 --processes 3
    python -m benchmarks.faults --kills 0 --drain-s 0        what SIGTERM alone breaks

Kill -9 of a process, and one that stands still, each in turn under a closed loop: how long the
requests took that were in flight (none may hang), how they ended, how long until the server answers
again and until /readyz says so. At last SIGTERM under load: nothing may be dropped, nothing may be
left.
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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.load import Connections, Server, http_request, serving
from benchmarks.parts.processes import alive, command_line, process_tree
from benchmarks.parts.timing import machine
from benchmarks.serve_load import photo
from models.bundle.folder import load_bundle
from models.command import command_parser, tells_mistakes

_CONCURRENCY = 8
_RECOVERS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Answered:
    """A request: when it was sent and answered, and the status.

    0: the connection broke; -1: nobody listens any more.
    """

    sent_s: float
    done_s: float
    status: int


def serving_pids(server: Server) -> list[int]:
    """The processes that answer: one, or those below the supervisor, which were spawned."""
    spawned = [pid for pid in process_tree(server.pid) if "spawn_main" in command_line(pid)]
    return spawned or [server.pid]


async def load(port: int, request: bytes, ended: asyncio.Event, seen: list[Answered]) -> None:
    """A closed loop until ``ended``; what came of each request goes into ``seen``."""
    connections = Connections(port)

    async def client() -> None:
        while not ended.is_set():
            sent = time.monotonic()
            sample = await connections.ask(0, request)
            seen.append(Answered(sent, time.monotonic(), sample.status))
            if sample.status != 200:
                await asyncio.sleep(0.01)  # as a client with some manners would

    await asyncio.gather(*(client() for _ in range(_CONCURRENCY)))


async def fault(
    server: Server, request: bytes, pids: Callable[[Server], list[int]], number: int
) -> dict[str, Any]:
    """Signal one of the processes under load, and watch the server until it is well again."""
    seen: list[Answered] = []
    ended = asyncio.Event()
    loading = asyncio.create_task(load(server.port, request, ended, seen))
    await asyncio.sleep(1.0)
    before = await asyncio.to_thread(pids, server)
    struck = time.monotonic()
    os.kill(before[0], number)
    ready = await well_again(server, pids, before, struck)
    await asyncio.sleep(0.5)
    ended.set()
    await asyncio.wait_for(loading, _RECOVERS_WITHIN_S)
    in_flight = [one for one in seen if one.sent_s < struck < one.done_s]
    after = [one for one in seen if one.sent_s >= struck]
    # A client whose connection broke, or who was told 503, comes again: when is it served?
    failed = [one.done_s for one in seen if one.done_s > struck and one.status != 200]
    served = [
        one.done_s for one in after if one.status == 200 and one.sent_s > max(failed, default=0)
    ]
    return {
        "in_flight": dict(Counter(one.status for one in in_flight)),
        "longest_in_flight_s": max((one.done_s for one in in_flight), default=struck) - struck,
        "later": dict(Counter(one.status for one in after)),
        "answers_again_s": min(served, default=float("nan")) - struck,
        "ready_again_s": ready - struck,
    }


async def well_again(
    server: Server, pids: Callable[[Server], list[int]], before: list[int], struck: float
) -> float:
    """When /readyz is 200 and as many processes are there as before, without the one struck."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        while time.monotonic() < struck + _RECOVERS_WITHIN_S:
            await asyncio.sleep(0.02)
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/readyz", timeout=1.0)).status_code != 200:
                    continue
                now = time.monotonic()
                there = await asyncio.to_thread(pids, server)
                if len(there) == len(before) and before[0] not in there:
                    return now
    raise ValueError(f"the server was not well again within {_RECOVERS_WITHIN_S:g} s")


async def stop(server: Server, request: bytes, *, drains: bool) -> dict[str, Any]:
    """SIGTERM under load: what becomes of requests, and how long until nothing is left.

    ``drains``: clients stop when the server says that it will, as behind a balancer; else they ask
    to the end.
    """
    seen: list[Answered] = []
    ended = asyncio.Event()
    loading = asyncio.create_task(load(server.port, request, ended, seen))
    await asyncio.sleep(1.0)
    everything = set(process_tree(server.pid)) - {server.pid}
    struck = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        draining_s = None
        while (draining_s is None or not drains) and server.pid in alive():
            with contextlib.suppress(httpx.TransportError):
                status = (await client.get("/readyz")).status_code
                if status == 503 and draining_s is None:
                    draining_s = time.monotonic() - struck
            await asyncio.sleep(0.01)
    ended.set()
    await asyncio.wait_for(loading, _RECOVERS_WITHIN_S)
    while everything & alive().keys() and time.monotonic() < struck + 2 * _RECOVERS_WITHIN_S:
        await asyncio.sleep(0.05)
    return {
        "draining_said_s": draining_s,
        "statuses": dict(Counter(one.status for one in seen if one.done_s > struck)),
        "all_gone_s": time.monotonic() - struck,
        "left": len(everything & alive().keys()),
    }


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.faults", __doc__)
    parser.add_argument("--bundle", type=Path, default=CIFAR10_CNN)
    parser.add_argument("--kills", type=int, default=5, help="faults of each kind")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--drain-s", type=float, default=1.0, help="drain_s of the server")
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    options = parser.parse_args(arguments)
    if options.load_core is not None:
        os.sched_setaffinity(0, {options.load_core})
    kinds: dict[str, tuple[Callable[[Server], list[int]], int]] = {
        "killed": (serving_pids, signal.SIGKILL),
        "stands still": (serving_pids, signal.SIGSTOP),
    }
    command = ["-m", "shiftnas_serve", "--bundle", str(options.bundle)]
    command += ["--processes", str(options.processes)]
    command += ["--drain-s", str(options.drain_s)]
    rows: list[dict[str, Any]] = []
    bundle = load_bundle(options.bundle)
    request = http_request("/classify", photo(32, 0), {"Content-Type": "image/jpeg"})
    with serving(command, "/readyz", options.server_core) as server:
        for _ in range(options.kills):
            for kind, (pids, number) in kinds.items():
                found = asyncio.run(fault(server, request, pids, number))
                rows.append({"kind": kind, **found})
        stopped = asyncio.run(stop(server, request, drains=options.drain_s > 0))
    if not options.json:
        print_table(options, rows, stopped, list(kinds))
    about = {"benchmark": "faults", "bundle": bundle.name, "processes": options.processes}
    about["drain_s"] = options.drain_s
    print(json.dumps({**about, "rows": rows, "sigterm": stopped, "machine": machine()}))
    return 0


def print_table(
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    stopped: dict[str, Any],
    kinds: list[str],
) -> None:
    """Medians and the worst of each kind."""
    print(
        f"{options.processes} processes, {_CONCURRENCY} requests at once, {options.kills} of each; "
        "seconds after the signal: median (most)"
    )
    print("fault                            in flight ended   answers again     ready again")
    for kind in kinds:
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            continue
        texts = []
        for key in ("longest_in_flight_s", "answers_again_s", "ready_again_s"):
            values = [row[key] for row in of_kind]
            texts.append(f"{statistics.median(values):.2f} ({max(values):.2f})")
        print(f"{kind:32} {texts[0]:17} {texts[1]:17} {texts[2]:17}")
        for key in ("in_flight", "later"):
            total: Counter[int] = Counter()
            for row in of_kind:
                total.update(row[key])
            print(
                f"  {key.replace('_', ' ')}: " + ", ".join(f"{n} x {s}" for s, n in total.items())
            )
    said = stopped["draining_said_s"]
    said = "never says so" if said is None else f"says so after {said:.2f} s"
    print(
        f"SIGTERM: /readyz {said}, all gone after "
        f"{stopped['all_gone_s']:.2f} s, {stopped['left']} left; answers since: "
        + ", ".join(f"{n} x {s}" for s, n in stopped["statuses"].items())
    )


if __name__ == "__main__":
    sys.exit(main())
