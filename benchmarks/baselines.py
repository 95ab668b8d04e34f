"""What would a user pick instead? Our subnets beside public networks, in ONNX Runtime, in one run.

    python -m benchmarks.baselines --batch 1 8 --plot baselines.png

The public networks are timm's, without weights (speed needs none), exported by torch and optimized
by ONNX Runtime as it does by itself. Ours run as the server runs them. All take turns on one
thread. The table gives milliseconds an image and, since the networks differ in size, nanoseconds a
thousand multiply-adds. ``ours / line`` compares a subnet with public networks of its family: the
time that a line through their points, in logarithms, gives for its FLOPs.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.latency_vs_flops import evenly_spaced
from benchmarks.parts.timing import Timing, machine, time_in_turn
from models.bundle.folder import load_bundle
from models.command import command_parser, tells_mistakes
from models.extras import require
from models.onnx import OPSET
from models.outputs import plot_file
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.settings import DEFAULT_BUNDLE

PUBLIC: Sequence[tuple[str, int]] = (
    *(("tf_efficientnet_lite0", side) for side in (96, 128, 160, 192, 224)),
    ("mobilenetv3_small_100", 224),
    ("mobilenetv3_large_100", 224),
    ("efficientnet_b0", 224),
    ("vit_tiny_patch16_224", 224),
)
"""Names of timm and the sides of their images. The first is the family of imagenet-mobile."""


@dataclass(frozen=True)
class Network:
    """Something that runs a batch. ``flops``: multiply-adds of an image."""

    name: str
    ours: bool
    side: int
    flops: int
    run: Callable[[np.ndarray], object]


@dataclass(frozen=True)
class Row:
    """A network in a table. ``ratio``: ours to the line of the family, at the same FLOPs."""

    name: str
    ours: bool
    flops: int
    ms: float
    ratio: float | None


@dataclass(frozen=True)
class Table:
    """Of one batch size; ``ms`` is of an image."""

    batch: int
    rows: tuple[Row, ...]


def public_network(name: str, side: int) -> Network:
    """A network of timm, as torch exports it and ONNX Runtime runs it."""
    import timm

    with torch.random.fork_rng(devices=[]):
        net = timm.create_model(name, pretrained=False).eval()
    images = torch.zeros(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images)
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 3, side, side),),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    file = io.BytesIO(program.model_proto.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    return Network(
        f"{name} {side}",
        False,
        side,
        counter.get_total_flops() // 2,
        lambda batch: session.run(["logits"], {"images": batch}),
    )


def our_networks(path: Path, points: int) -> list[Network]:
    """Answers of a bundle, in the runtime of the server."""
    bundle = load_bundle(path)
    runtime = build_runtime("onnxruntime", "cpu", 1)
    return [
        Network(
            f"{bundle.name} {bundle.space.resolution(arch)}",
            True,
            bundle.space.resolution(arch),
            bundle.space.flops(arch),
            runtime.build(bundle, arch).run,
        )
        for arch in evenly_spaced(bundle, points)
    ]


def beside(family: Sequence[tuple[int, float]], flops: int) -> float:
    """Milliseconds that a line through (FLOPs, ms), in logarithms, gives for some FLOPs."""
    known, ms = np.log(np.array(family, dtype=float)).T
    slope, offset = np.polyfit(known, ms, 1)
    return float(np.exp(slope * np.log(flops) + offset))


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON. Exit status: 0, or 2 for a mistake of the user's."""
    parser = command_parser("benchmarks.baselines", __doc__, json=False)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--points", type=int, default=6, help="subnets of ours, at even budgets")
    parser.add_argument(
        "--public",
        nargs="+",
        metavar="NAME:SIDE",
        help="networks of timm (default: the list in this script)",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--plot", type=plot_file, help="write a plot to this file")
    options = parser.parse_args(arguments)
    require("train", "timm", "onnxscript")
    asked = [one.partition(":") for one in options.public or ()]
    chosen = [(name, int(side or 224)) for name, _, side in asked] or list(PUBLIC)
    ours = our_networks(options.bundle, options.points)
    networks = sorted(
        [*ours, *(public_network(*one) for one in chosen)], key=lambda network: network.flops
    )
    rng = np.random.default_rng(0)
    told: list[Table] = []
    for batch in options.batch:
        noise = {
            side: rng.normal(size=(batch, 3, side, side)).astype(np.float32)
            for side in {network.side for network in networks}
        }
        calls = [partial(network.run, noise[network.side]) for network in networks]
        timings = time_in_turn(calls, rounds=options.rounds)
        told.append(table(batch, networks, timings, chosen[0][0]))
    if options.plot is not None:
        plot(options.plot, told)
    print(
        json.dumps(
            {
                "benchmark": "baselines",
                "tables": [asdict(one) for one in told],
                "machine": machine(),
            }
        )
    )
    return 0


def plot(path: Path, tables: Sequence[Table]) -> None:
    """A panel for each batch, ours standing out."""
    from benchmarks.parts.plot import Panel, plot_panels

    axes = "MFLOPs (multiply-adds)", "milliseconds an image"
    panels: list[Panel] = []
    for one in tables:
        series: dict[str, list[tuple[float, float]]] = {"ours": []}
        for row in one.rows:
            name = "ours" if row.ours else row.name.split()[0]
            series.setdefault(name, []).append((row.flops / 1e6, row.ms))
        panels.append(Panel(f"batch {one.batch}", *axes, series))
    plot_panels(path, f"{machine()['cpu']}, one thread", [panels])


def table(batch: int, networks: Sequence[Network], timings: Sequence[Timing], family: str) -> Table:
    """Print a batch's rows, and give them."""
    per_image = [timing.median_ms / batch for timing in timings]
    line = [
        (network.flops, ms)
        for network, ms in zip(networks, per_image, strict=True)
        if network.name.startswith(family)
    ]
    print(f"\nbatch {batch}, medians, one thread, {machine()['cpu']}")
    print("network                          MFLOPs   ms/image   ns/kFLOP   ours / line")
    rows: list[Row] = []
    for network, ms in zip(networks, per_image, strict=True):
        ratio = ms / beside(line, network.flops) if network.ours and len(line) > 1 else None
        rows.append(Row(network.name, network.ours, network.flops, ms, ratio))
        cost = 1e9 * ms / network.flops
        shown = "" if ratio is None else f"{ratio:.2f}"
        print(f"{network.name:<30} {network.flops / 1e6:8.1f} {ms:10.3f} {cost:10.1f} {shown:>13}")
    return Table(batch, tuple(rows))


if __name__ == "__main__":
    sys.exit(main())
