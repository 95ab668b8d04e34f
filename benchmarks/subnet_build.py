"""How long from a budget that was never seen to a subnet that can run? Beside torch's exporters.

    python -m benchmarks.subnet_build
    python -m benchmarks.subnet_build --space attentivenas --budgets 20
    python -m benchmarks.subnet_build --bundle runs/vit/bundle

For random budgets, on one thread: the bundle's answer (by the generator), slicing, the graph,
the session in ONNX Runtime, its first run; each timed alone. Where the server needs no session for
each subnet (no BatchNorm), also what it does instead. In turn with these, for some of the same
subnets, torch's exporters (``torch.onnx.export`` with ``dynamo=True``; with ``dynamo=False``, the
TorchScript exporter), each with the session from what it wrote; they are given the extracted
network. At last, what one image takes in the sessions built each way, in turn. All must answer as
torch does. Processor time stands beside time: on a machine with other work only it compares.

``--space`` measures untrained bundles (random weights); a space with BatchNorm answers 16 archs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parts.timing import machine, time_in_turn
from benchmarks.parts.untrained import write_untrained
from models.bundle.disk import reason
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.nets.deployed import deployed_net
from models.onnx.graph import cut_graph_apart, graph_weights
from models.onnx.ort import onnxruntime
from models.space.arch import Arch
from models.space.weights import weight_slices
from shiftnas_serve.runtimes.base import AbstractSession
from shiftnas_serve.runtimes.onnxruntime import OnnxRuntime

STAGES = ("answer", "slice", "graph", "session", "total", "first run", "as served")
"""``total``: of the four before it. ``as served``: a subnet's share of a universal session."""
KINDS = ("median_ms", "processor_ms")
TOLERANCE = 1e-4

Run = Callable[[np.ndarray], np.ndarray]


def clock() -> np.ndarray:
    """Seconds that passed, and seconds of processor time of this process."""
    return np.array([time.perf_counter(), time.process_time()])


@dataclass
class Samples:
    """Milliseconds, and milliseconds of processor time, by what was timed."""

    ms: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, name: str, since: np.ndarray) -> np.ndarray:
        """Record the time since; answers the time at which the next begins."""
        self.ms.setdefault(name, []).append(1000 * (clock() - since))
        return clock()

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, 10th and 90th percentile, median processor time and how many, by name."""
        found = {}
        for name, values in self.ms.items():
            low, median, high = np.percentile(values, (10, 50, 90), axis=0)
            row = {"median_ms": median[0], "p10_ms": low[0], "p90_ms": high[0]}
            row["processor_ms"] = median[1]
            found[name] = {key: round(float(value), 3) for key, value in row.items()}
            found[name]["count"] = len(values)
        return found


def build_own(
    bundle: Bundle, runtime: OnnxRuntime, budget: float, samples: Samples
) -> tuple[Arch, AbstractSession]:
    """From a budget to a session of the subnet's own, stage by stage."""
    weight_slices.cache_clear()  # another budget may have had the same answer
    start = at = clock()
    arch = bundle.answer(budget)
    at = samples.add("answer", at)
    weights = bundle.subnet_weights(arch)
    at = samples.add("slice", at)
    arrays = graph_weights(bundle.template, bundle.space, arch, weights)
    model = cut_graph_apart(bundle.template, bundle.space, arch, arrays)
    data = model.SerializeToString()
    at = samples.add("graph", at)
    session = runtime.session_of(data, arrays, convolutional=bool(bundle.space.norms))
    samples.add("session", at)
    samples.add("total", start)
    return arch, session


def plain_session(data: bytes) -> Run:
    """A session as one makes it who knows of nothing, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"images": images})[0])


class ImagesOnly(torch.nn.Module):
    """A network that takes nothing but images: torch's exporters pass every argument there is."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def export(net: torch.nn.Module, side: int, *, dynamo: bool) -> bytes:
    """The network as ONNX for any batch, by one of torch's exporters."""
    net = ImagesOnly(net).eval()
    images = torch.zeros(2, 3, side, side)
    names = {"input_names": ["images"], "output_names": ["logits"], "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter's, that it is old
        if dynamo:
            shapes = ({0: torch.export.Dim("batch", min=1, max=65536)},)
            program = torch.onnx.export(net, (images,), dynamo=True, dynamic_shapes=shapes, **names)
            assert program is not None
            return program.model_proto.SerializeToString()
        axes = {"images": {0: "batch"}}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "subnet.onnx"
            torch.onnx.export(net, (images,), file, dynamo=False, dynamic_axes=axes, **names)
            return file.read_bytes()


def compare(
    net: torch.nn.Module, side: int, runtime_runs: dict[str, Run], samples: Samples
) -> tuple[dict[str, Run], dict[str, str]]:
    """Time both exporters on one subnet. All sessions, and why an exporter gave none."""
    runs = dict(runtime_runs)
    failed: dict[str, str] = {}
    for name, dynamo in (("dynamo", True), ("torchscript", False)):
        at = clock()
        try:
            data = export(net, side, dynamo=dynamo)
        except Exception as error:  # noqa: BLE001 - an exporter that fails is a result, too
            failed[name] = f"{type(error).__name__}: {reason(error):.200}"
            continue
        samples.add(f"{name} export", at)
        runs[name] = plain_session(data)
        samples.add(name, at)
    images = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(images)).numpy()
    for name, run in runs.items():
        error = np.abs(run(images) - wanted).max() / np.abs(wanted).max()
        if not error < TOLERANCE:
            raise ValueError(f"{name} differs from torch by {error:.1e} of the largest logit")
    return runs, failed


def measure(
    bundle: Bundle, *, budgets: int, exports: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Everything for one bundle."""
    rng = np.random.default_rng(seed)
    runtime, samples = OnnxRuntime("cpu", 1), Samples()
    universal = not bundle.space.norms
    latency: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    archs: set[Arch] = set()
    export_at = np.linspace(0, budgets - 1, exports).astype(int).tolist()
    kept: list[AbstractSession] = []  # as in a server, where subnets share what they can
    for index, budget in enumerate(rng.uniform(bundle.min_flops, bundle.max_flops, budgets)):
        arch, own = build_own(bundle, runtime, budget, samples)
        archs.add(arch)
        side = bundle.space.resolution(arch)
        images = rng.normal(size=(1, 3, side, side)).astype(np.float32)
        at = clock()
        own.run(images)
        samples.add("first run", at)
        runs: dict[str, Run] = {"own": own.run}
        if universal:
            weight_slices.cache_clear()
            at = clock()
            kept.append(runtime.build(bundle, arch))
            samples.add("as served", at)
            runs["as served"] = kept[-1].run
        if index in export_at:
            runs, why = compare(deployed_net(bundle, arch), side, runs, samples)
            failed.update(why)
            calls = [lambda run=run, x=images: run(x) for run in runs.values()]
            for name, timing in zip(runs, time_in_turn(calls, rounds=rounds), strict=True):
                latency.setdefault(name, []).append(timing.median_ms)
    found = samples.summary()
    total = found["total"]
    return {
        "bundle": bundle.name,
        "budgets": budgets,
        "archs": len(archs),
        "stages": found,
        "ratios": {
            name: {key: round(found[name][key] / total[key], 1) for key in KINDS}
            for name in ("dynamo", "torchscript")
            if name in found
        },
        "failed": failed,
        "run_ms": {name: round(float(np.median(ms)), 3) for name, ms in latency.items()},
        "run_over_dynamo": {
            name: round(float(np.median(np.divide(ms, latency["dynamo"]))), 3)
            for name, ms in latency.items()
            if "dynamo" in latency
        },
    }


def show(row: dict[str, Any]) -> None:
    """A table of one bundle."""
    print(f"{row['bundle']}: {row['budgets']} random budgets, {row['archs']} archs")
    print("                     median ms      10-90 % ms  processor ms     n")
    for name in (*STAGES, "dynamo", "torchscript"):
        if name in row["stages"]:
            s = row["stages"][name]
            spread = f"{s['p10_ms']:.1f} - {s['p90_ms']:.1f}"
            times = f"{s['median_ms']:10.2f}  {spread:>16}  {s['processor_ms']:12.2f}"
            print(f"  {name:16}  {times}  {s['count']:4}")
    for name, ratio in row["ratios"].items():
        wall, processor = (ratio[key] for key in KINDS)
        print(f"  {name} with its session: {wall:.0f}x the total, {processor:.0f}x processor time")
    for name, why in row["failed"].items():
        print(f"  {name} FAILED: {why}")
    ran = ", ".join(f"{name} {ms:.2f} ms" for name, ms in row["run_ms"].items())
    print(f"  one image, once warm: {ran}")
    over = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["run_over_dynamo"].items())
    print(f"  against the dynamo exporter's session: {over or 'it gave none'}\n")


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.subnet_build", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--space", nargs="+", default=["vit-tiny", "vit-tiny-rpe"])
    which.add_argument("--bundle", type=Path)
    parser.add_argument("--budgets", type=int, default=40)
    parser.add_argument("--exports", type=int, default=3, help="subnets that torch exports, too")
    parser.add_argument("--rounds", type=int, default=20, help="counted runs of each session")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    if not 1 <= options.exports <= options.budgets or options.rounds < 1:
        raise ValueError("--rounds takes at least 1; --exports 1 up to --budgets")
    export(torch.nn.Flatten(), 8, dynamo=True)  # imports what the first export would
    for space in [None] if options.bundle else options.space:
        with tempfile.TemporaryDirectory() as folder:
            path = options.bundle or Path(folder) / "bundle"
            if space is not None:
                print(f"writing an untrained bundle of {space}", file=sys.stderr)
                write_untrained(space, path, options.seed)
            row = measure(
                load_bundle(path),
                budgets=options.budgets,
                exports=options.exports,
                rounds=options.rounds,
                seed=options.seed,
            )
        rows.append(row)
        if not options.json:
            show(row)
    about = {"benchmark": "subnet_build", "seed": options.seed, "exports": options.exports}
    about |= {"rounds": options.rounds, "rows": rows}
    versions = {"torch": torch.__version__}
    print(json.dumps({**about, "machine": {**machine(), **versions}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
