"""What do 8-bit integers gain on this CPU, and what do they cost? Answers of a bundle, on images.

    python -m benchmarks.int8 models/zoo/imagenet-mobile --data photos.parquet
    python -m benchmarks.int8 models/zoo/cifar10-cnn --data cifar10/ --images 2000

Training images calibrate, and test images are classified, in float and in 8 bits; of data without
test images every other image calibrates, and the rest are classified. Both run in ONNX Runtime on
one thread, in turn. Prints a table, and JSON as the last line. No server runs 8 bits yet: this says
whether it would pay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.latency_vs_flops import evenly_spaced
from benchmarks.parts.timing import machine, time_in_turn
from models.bundle.folder import load_bundle
from models.onnx.graph_template import INPUT, OUTPUT
from models.onnx.int8 import quantized
from trainer.data.reading import read_source
from trainer.intervals import interval


def session_of(model: bytes) -> onnxruntime.InferenceSession:
    """On one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def classes(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """The most probable class of each image."""
    parts = [images[i : i + 16] for i in range(0, len(images), 16)]
    return np.concatenate(
        [np.asarray(session.run([OUTPUT], {INPUT: part})[0]).argmax(1) for part in parts]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.int8",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="labelled images, as for trainer.evaluate")
    parser.add_argument(
        "--images", type=int, default=600, help="take the first so many images (default: 600)"
    )
    parser.add_argument(
        "--calibrate",
        type=int,
        default=100,
        help="calibrate on at most so many images (default: 100)",
    )
    parser.add_argument("--points", type=int, default=5, help="budgets, evenly spaced")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    try:
        bundle = load_bundle(options.bundle)
        source = read_source(options.data)
        if source.classes != bundle.labels:
            raise ValueError(f"the classes of {options.data} are not those of {options.bundle}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if source.test is None:
        part, calibrating, tested = source.train, slice(0, None, 2), slice(1, None, 2)
        photos = [part.read(index) for index in range(min(options.images, len(part)))]
        labels = np.asarray(part.labels[: len(photos)])[tested]
        some, photos = photos[calibrating][: options.calibrate], photos[tested]
    else:
        some = [source.train.read(index) for index in range(options.calibrate)]
        photos = [source.test.read(i) for i in range(min(options.images, len(source.test)))]
        labels = np.asarray(source.test.labels[: len(photos)])
    rows = []
    print(f"{bundle.name}, {machine()['cpu']}, one thread; {len(photos)} images are classified")
    print("  MFLOPs   batch 1: float, 8 bits, ratio     batch 8: ...     right, %: float   8 bits")
    for arch in evenly_spaced(bundle, options.points):
        side = bundle.space.resolution(arch)
        images, own = (
            bundle.preprocess.normalize(
                np.stack(
                    [
                        bundle.preprocess.pixels(bundle.preprocess.decode(photo, side), side)
                        for photo in them
                    ]
                )
            )
            for them in (photos, some)
        )
        model = bundle.build_onnx(arch).SerializeToString()
        kinds = [model, quantized(model, own)]
        sessions = [session_of(kind) for kind in kinds]
        times = [
            [
                timing.median_ms / batch
                for timing in time_in_turn(
                    [lambda s=s, n=images[:batch]: s.run([OUTPUT], {INPUT: n}) for s in sessions],
                    rounds=options.rounds,
                )
            ]
            for batch in (1, 8)
        ]
        right = [float((classes(s, images) == labels).mean()) for s in sessions]
        rows.append(
            {
                "flops": bundle.space.flops(arch),
                "ms_batch_1": times[0],
                "ms_batch_8": times[1],
                "right": right,
                "right_95": [interval(share, len(photos)) for share in right],
                "bytes": [len(kind) for kind in kinds],
            }
        )
        cells = [f"{a:7.3f} {b:7.3f} {a / b:5.2f}" for a, b in times]
        print(
            f"{bundle.space.flops(arch) / 1e6:8.1f}   {'     '.join(cells)}"
            f"     {100 * right[0]:.1f}  {100 * right[1]:.1f}"
        )
    told = {"benchmark": "int8", "bundle": bundle.name, "version": bundle.version, "rows": rows}
    print(json.dumps({**told, "images": len(photos), "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
