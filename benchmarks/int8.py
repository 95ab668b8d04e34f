"""What do 8-bit integers gain on this CPU, and what do they cost? Of a bundle that holds them.

    python -m benchmarks.int8 models/zoo/imagenet-mobile
    python -m benchmarks.int8 models/zoo/cifar10-cnn --points 8

Subnets run in both precisions as the server runs them, in turn, on one thread; so do their builds,
from the bundle to the first answer. Times are of the processor, so that other work on the machine
counts little. How right they are is the bundle's table, from images that
``python -m trainer.quantize`` measured. Prints a table, and JSON as the last line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.parts.timing import machine, noise, time_in_turn
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.space.arch import Arch
from shiftnas_serve.runtimes import AbstractRuntime, AbstractSession, build_runtime


def cpu_ms(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Medians of calls in turn: this thread's processor time, without what others take."""
    timings = time_in_turn(calls, rounds=rounds, clock=time.thread_time)
    return [timing.median_ms for timing in timings]


@dataclass(frozen=True)
class Row:
    """A subnet, in fp32 and in int8: milliseconds of an image, and of a build with a first answer.

    right: of images, fp32, int8, and how often int8 answers what fp32 does; None: not measured.
    """

    flops: int
    ms_batch_1: tuple[float, ...]
    ms_batch_8: tuple[float, ...]
    build_ms: tuple[float, ...]
    right: tuple[float | None, ...]


def row_of(both: Sequence[Bundle], runtime: AbstractRuntime, arch: Arch, rounds: int) -> Row:
    """Time it."""
    fp32, int8 = both
    assert int8.int8 is not None
    sessions = [runtime.build(bundle, arch) for bundle in both]
    first = noise(fp32, arch, 1)

    def call(session: AbstractSession, images: np.ndarray) -> Callable[[], object]:
        return lambda: session.run(images)

    def build(bundle: Bundle) -> Callable[[], object]:
        return lambda: runtime.build(bundle, arch).run(first)

    def each(batch: int) -> tuple[float, ...]:
        images = noise(fp32, arch, batch)
        times = cpu_ms([call(session, images) for session in sessions], rounds)
        return tuple(ms / batch for ms in times)

    found = int8.int8.rows.get(fp32.space.arch_id(arch))
    return Row(
        flops=fp32.space.flops(arch),
        ms_batch_1=each(1),
        ms_batch_8=each(8),
        build_ms=tuple(cpu_ms([build(bundle) for bundle in both], max(rounds // 4, 3))),
        right=(found.fp32_accuracy, found.accuracy, found.agreement) if found else (None,) * 3,
    )


def line_of(row: Row) -> str:
    """For people."""
    cells = [f"{a:7.3f} {b:7.3f} {a / b:5.2f}" for a, b in (row.ms_batch_1, row.ms_batch_8)]
    shares = [f"{100 * share:5.1f}" if share is not None else "    –" for share in row.right]
    return (
        f"{row.flops / 1e6:8.1f} {'   '.join(cells)}  {row.build_ms[0]:6.1f} {row.build_ms[1]:6.1f}"
        f"  {' '.join(shares)}"
    )


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    parser = command_parser("benchmarks.int8", __doc__, json=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--points", type=int, default=5, help="answers of the frontier (default: 5)"
    )
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    both = (bundle, bundle.at("int8"))
    runtime = build_runtime("onnxruntime", "cpu", 1, precision="int8")
    archs = list(dict.fromkeys(row.arch for row in bundle.frontier))
    some = np.unique(np.linspace(0, len(archs) - 1, options.points).astype(int))
    known = bundle.int8
    assert known is not None
    print(f"{bundle.name}, {machine()['cpu']}, one thread; right: of {known.images} images")
    print("              batch 1, ms            batch 8, ms an image   a build, ms      right, %")
    print(
        "  MFLOPs    fp32    int8 ratio      fp32    int8 ratio    fp32   int8   fp32  int8  same"
    )
    rows = []
    for place in some:
        row = row_of(both, runtime, archs[place], options.rounds)
        rows.append(asdict(row))
        print(line_of(row))
    told = {"benchmark": "int8", "bundle": bundle.name, "version": bundle.version, "rows": rows}
    about = {"measured_on": known.measured_on, "images": known.images, "machine": machine()}
    print(json.dumps({**told, **about}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
