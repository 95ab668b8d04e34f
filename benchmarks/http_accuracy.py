"""Do test images sent over HTTP score what the bundle's table says?

    python -m benchmarks.http_accuracy --data cifar10.parquet
    python -m benchmarks.http_accuracy --data cifar10.parquet --images 2000 --budgets 8

Starts a server, sends the encoded test images as they are, and compares the accuracy at each budget
with the table's test accuracy and its 95 % interval for so many images.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.load import serving
from benchmarks.parts.timing import machine
from models.bundle.folder import FrontierRow, load_bundle
from models.command import command_parser, tells_mistakes
from models.interval import interval
from trainer.data.reading import read_source


def encoded_test_images(source: str, count: int, seed: int) -> list[tuple[bytes, int]]:
    """A random sample of a data set's test images as they are stored, with their labels."""
    test = read_source(source).test
    if test is None:
        raise ValueError(f"{source} has no test split; name a folder with test*.parquet or test/")
    rows = np.random.default_rng(seed).permutation(len(test))[:count]
    return [(test.read(row), int(test.labels[row])) for row in rows.tolist()]


def send(url: str, images: list[tuple[bytes, int]], row: FrontierRow) -> tuple[float, int]:
    """Accuracy over HTTP at a row's budget, and the most FLOPs that answered."""
    headers = {
        "Content-Type": "application/octet-stream",
        "FLOPs-Budget": str(int(row.budget_flops)),
    }
    with httpx.Client(base_url=url, timeout=30) as client, ThreadPoolExecutor(8) as pool:

        def one(image: tuple[bytes, int]) -> tuple[bool, int]:
            response = client.post("/classify?top_k=1", content=image[0], headers=headers)
            response.raise_for_status()
            best = response.json()["predictions"][0]["index"]
            return best == image[1], int(response.headers["Served-FLOPs"])

        answers = list(pool.map(one, images))
    return sum(right for right, _ in answers) / len(answers), max(flops for _, flops in answers)


def compared(row: FrontierRow, accuracy: float, flops: int, images: int) -> dict[str, Any]:
    """What was measured over HTTP, beside the table's with the interval of so many images."""
    expected = row.test_accuracy or 0.0
    low, high = interval(expected, images)
    return {
        "budget_flops": int(row.budget_flops),
        "served_flops": flops,
        "http_accuracy": round(accuracy, 4),
        "table_accuracy": round(expected, 4),
        "interval_95": (round(low, 4), round(high, 4)),
        "within": low <= accuracy <= high,
    }


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.http_accuracy", __doc__)
    parser.add_argument("--data", required=True, help="the data set the bundle was trained on")
    parser.add_argument("--bundle", type=Path, default=CIFAR10_CNN)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--budgets", type=int, default=4, help="rows of the table, evenly spaced")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    bundle = load_bundle(options.bundle)
    images = encoded_test_images(options.data, options.images, options.seed)
    count = min(options.budgets, len(bundle.frontier))
    places = np.linspace(0, len(bundle.frontier) - 1, count).round().astype(int)
    command = ["-m", "shiftnas_serve", "--bundle", str(options.bundle)]
    with serving(command, "/readyz", None) as server:
        for place in places.tolist():
            row = bundle.frontier[place]
            sent = send(f"http://127.0.0.1:{server.port}", images, row)
            rows.append(compared(row, *sent, len(images)))
    if not options.json:
        print(f"{bundle.name}: {len(images)} test images over HTTP (seed {options.seed})")
        print("budget MFLOPs   served   over HTTP %   table %   95 % of so many    within")
        for one in rows:
            low, high = one["interval_95"]
            print(
                f"{one['budget_flops'] / 1e6:13.2f} {one['served_flops'] / 1e6:8.2f}   "
                f"{100 * one['http_accuracy']:11.2f}   {100 * one['table_accuracy']:7.2f}   "
                f"{100 * low:6.2f} to {100 * high:6.2f}   {'yes' if one['within'] else 'NO':>6}"
            )
    about = {"benchmark": "http_accuracy", "bundle": bundle.name, "version": bundle.version}
    print(json.dumps({**about, "images": len(images), "rows": rows, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
