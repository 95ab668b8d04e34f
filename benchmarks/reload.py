"""What does a reload cost those who ask meanwhile, and does its memory come back?

    python -m benchmarks.reload
    python -m benchmarks.reload --reloads 10 --workers 2

Under a closed loop the server goes to and fro between a bundle and a copy of it with other labels:
how long each reload took, the latency of requests before, during and after it, how many failed, how
many answers named a version other than the one their labels are of; the workers' and the HTTP
processes' memory before the first and after each.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.load import Server, serving
from benchmarks.parts.processes import memory_bytes
from benchmarks.parts.timing import machine
from benchmarks.serve_load import photo
from models.bundle.folder import load_bundle
from models.bundle.manifest import version_of
from models.command import command_parser, tells_mistakes

_CONCURRENCY = 4
_QUIET_S = 3.0
_KEY = "benchmark"


def relabelled(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle with other labels, so that it has another version."""
    shutil.copytree(bundle, folder)
    manifest = folder / "bundle.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["labels"] = [f"{label} (copy)" for label in document["labels"]]
    document["version"] = version_of(document)
    manifest.write_text(json.dumps(document))
    return folder


async def reload_under_load(
    server: Server, bundles: list[Path], reloads: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each reload, and what came of all requests."""
    labels = {one.version: set(one.labels) for one in map(load_bundle, bundles)}
    url = f"http://127.0.0.1:{server.port}"
    samples: list[tuple[float, float]] = []  # when sent, milliseconds
    statuses: Counter[int] = Counter()
    mixed = 0
    ended = asyncio.Event()

    async def client() -> None:
        nonlocal mixed
        async with httpx.AsyncClient(base_url=url, timeout=60) as asking:
            while not ended.is_set():
                sent = time.monotonic()
                answer = await asking.post("/classify", content=photo(32, 0))
                samples.append((sent, 1000 * (time.monotonic() - sent)))
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    body = answer.json()
                    of_version = labels[body["model"]["version"]]
                    mixed += any(one["label"] not in of_version for one in body["predictions"])

    def of(start: float, end: float) -> dict[str, float]:
        taken = sorted(ms for sent, ms in samples if start <= sent < end)
        return {"p50_ms": statistics.median(taken), "p99_ms": taken[int(0.99 * len(taken))]}

    clients = [asyncio.create_task(client()) for _ in range(_CONCURRENCY)]
    await asyncio.sleep(_QUIET_S)  # sessions are built meanwhile
    rows: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as admin:
        headers = {"Authorization": f"Bearer {_KEY}"}
        for turn in range(reloads):
            await asyncio.sleep(_QUIET_S)
            memory = {"memory_mb": memory_bytes(server.pid) / 1e6}
            begun = time.monotonic()
            target = {"bundle": str(bundles[(turn + 1) % 2])}
            answer = await admin.post("/admin/reload", json=target, headers=headers)
            if answer.status_code != 200:
                raise ValueError(f"the reload was refused: {answer.text}")
            done = time.monotonic()
            await asyncio.sleep(_QUIET_S)
            row = {"took_s": done - begun, "before": of(begun - _QUIET_S, begun), **memory}
            row |= {"during": of(begun, done), "after": of(done, done + _QUIET_S)}
            rows.append(row)
    ended.set()
    await asyncio.gather(*clients)
    after = {"memory_mb": memory_bytes(server.pid) / 1e6}
    return rows, {"statuses": dict(statuses), "mixed": mixed, **after}


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.reload", __doc__)
    parser.add_argument("--bundle", type=Path, default=CIFAR10_CNN)
    parser.add_argument("--reloads", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--server-core", type=int, default=None)
    parser.add_argument("--load-core", type=int, default=None)
    options = parser.parse_args(arguments)
    if options.load_core is not None:
        os.sched_setaffinity(0, {options.load_core})
    os.environ["SHIFTNAS_ADMIN_KEYS"] = _KEY
    command = ["-m", "shiftnas_serve", "--bundle", str(options.bundle)]
    command += ["--workers", str(options.workers)]
    with tempfile.TemporaryDirectory() as name:
        bundles = [options.bundle, relabelled(options.bundle, Path(name) / "copy")]
        with serving(command, "/readyz", options.server_core) as server:
            rows, total = asyncio.run(reload_under_load(server, bundles, options.reloads))
    if not options.json:
        print(f"{_CONCURRENCY} requests at once; milliseconds p50 / p99; memory as PSS")
        print("took, s   before          during          after           memory, MB")
        for row in rows:
            times = (row["before"], row["during"], row["after"])
            texts = [f"{one['p50_ms']:.1f} / {one['p99_ms']:.1f}" for one in times]
            print(
                f"{row['took_s']:7.2f}   {texts[0]:15} {texts[1]:15} {texts[2]:15} "
                f"{row['memory_mb']:10.1f}"
            )
        print(f"at the end{total['memory_mb']:60.1f}")
        print(f"statuses {total['statuses']}, answers of two versions mixed: {total['mixed']}")
    about = {"benchmark": "reload", "bundle": options.bundle.name, "workers": options.workers}
    print(json.dumps({**about, "rows": rows, **total, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
