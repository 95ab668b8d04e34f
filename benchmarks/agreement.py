r"""Do runtimes and precisions answer as ONNX Runtime in fp32 does? On images.

    python -m benchmarks.agreement BUNDLE --data PHOTOS --runtime openvino --precision bf16
    python -m benchmarks.agreement BUNDLE --data PATH --runtime onnxruntime openvino \
        --precision fp32 bf16 int8 --points 4

Data may be of any kind that training reads; where there is a test split, that alone is taken. Every
subnet looks at all images, as the server decodes them. Against ONNX Runtime in fp32, and in the
same precision of the graph (int8, else fp32): the largest difference of a logit; the mean
difference, beside the mean of all logits; how many images get the same class; how far the
probability of the class moves. Prints a table and a JSON line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.latency_vs_flops import add_what_runs, asked_lines, evenly_spaced
from benchmarks.parts.timing import machine
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.images.photos import Photos
from models.space.arch import Arch
from shiftnas_serve.runtimes import AbstractRuntime, build_runtime, graph_precision
from trainer.data.reading import read_source
from trainer.quantize import decoded
from trainer.served import labels_in

_BATCH = 16


@dataclass(frozen=True)
class Apart:
    """How far two answers to the same images are from each other, ``same``: the share of classes.

    ``surer``: the mean change of the probability of what is answered.
    """

    largest: float
    mean: float
    same: float
    surer: float

    @classmethod
    def of(cls, logits: np.ndarray, exact: np.ndarray) -> Apart:
        """Of float32 (images, classes)."""
        apart = np.abs(logits - exact)
        return cls(
            largest=float(apart.max()),
            mean=float(apart.mean() / np.abs(exact).mean()),
            same=float((logits.argmax(1) == exact.argmax(1)).mean()),
            surer=float(np.abs(sure(logits) - sure(exact)).mean()),
        )


def sure(logits: np.ndarray) -> np.ndarray:
    """The probability of what is answered."""
    return 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)


def answers(runtime: AbstractRuntime, bundle: Bundle, arch: Arch, photos: Photos) -> np.ndarray:
    """Logits of all images."""
    session, side = runtime.build(bundle, arch), bundle.space.resolution(arch)
    starts = range(0, len(photos), _BATCH)
    said = [session.run(photos.batch(slice(start, start + _BATCH), side)) for start in starts]
    session.close()
    return np.concatenate(said)


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    parser = command_parser("benchmarks.agreement", __doc__, json=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="images with labels")
    parser.add_argument("--points", type=int, default=4, help="budgets, evenly spaced (default: 4)")
    add_what_runs(parser)
    options = parser.parse_args(arguments)
    options.batch = options.threads = [1]
    if options.points < 2:
        raise ValueError(f"--points is {options.points}: give 2 or more")
    fp32 = load_bundle(options.bundle)
    lines, passed = asked_lines(options)
    at = {line.precision: fp32.at(graph_precision(line.precision)) for line, _ in lines}
    source = read_source(options.data)
    images = source.train if source.test is None else source.test
    labels = labels_in(fp32, source.classes, images)
    photos = decoded(fp32, images)
    about = f"{len(photos):,} images of {source.name}"
    print(f"{fp32.name}, {machine()['cpu']}, {about}; logits beside ONNX Runtime's in fp32,")
    print("and beside its own in the same graph: largest difference, mean, same class, surer by")
    own = build_runtime("onnxruntime", "cpu", 1)
    rows = []
    for arch in evenly_spaced(fp32, options.points):
        exact = answers(own, fp32, arch, photos)
        flops = fp32.space.flops(arch)
        right = float((exact.argmax(1) == labels).mean())
        print(f"\n{flops / 1e6:.2f} MFLOPs, right {100 * right:.2f} %")
        for line, runtime in lines:
            bundle = at[line.precision]
            given = answers(runtime, bundle, arch, photos)
            of_graph = exact if bundle is fp32 else answers(own, bundle, arch, photos)
            both = Apart.of(given, exact), Apart.of(given, of_graph)
            right = float((given.argmax(1) == labels).mean())
            named = f"{line.runtime} {line.device} {line.precision}"
            cells = "   ".join(
                f"{one.largest:8.4f} {100 * one.mean:7.3f} % {100 * one.same:7.2f} % "
                f"{100 * one.surer:6.2f} %"
                for one in both
            )
            print(f"{named:22s} right {100 * right:6.2f} %   {cells}")
            told = [asdict(one) for one in both]
            rows.append({"flops": flops, "runs": named, "right": right, "apart": told})
    for reason in passed:
        print(f"\nnot run: {reason}")
    told = {"benchmark": "agreement", "bundle": fp32.name, "version": fp32.version, "data": about}
    print(json.dumps({**told, "rows": rows, "not_run": passed, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
