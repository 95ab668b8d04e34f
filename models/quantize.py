"""``python -m models quantize``: a bundle whose answers can also run in 8-bit integers. No torch.

Some photos give the ranges of the activations of every answer; others tell how often an answer in 8
bits is that in full precision. Neither needs labels: ``trainer.quantize`` takes labelled images,
and measures accuracies and confidence too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.bundle.folder import Bundle, load_bundle, save_with_int8
from models.bundle.int8 import Int8, Int8Row
from models.bundle.manifest import int8_entry
from models.images.photos import Photos, find_photos, read_photos
from models.onnx.graph_template import INPUT, OUTPUT
from models.onnx.int8 import quantized_values
from models.onnx.ort import onnxruntime, session_options
from models.outputs import refuse_unwritable
from models.space.arch import Arch

CALIBRATION_IMAGES = 256
_LEAST = 32
_BATCH = 8
"""Images at once; all activations of a batch are in memory."""


def refuse_unquantizable(bundle: Bundle) -> None:
    """Raises ValueError for a bundle whose answers cannot be quantized."""
    if not bundle.space.norms:
        raise ValueError(
            f"{bundle.name} is of {bundle.space.name}: int8 is for convolutional networks; "
            "transformers are served in fp32"
        )
    if not bundle.answers:
        raise ValueError(
            f"{bundle.name} stores no answers, and ranges belong to archs: it is served in fp32"
        )


def quantize_bundle(
    source: Path,
    out: Path,
    data: Path,
    *,
    images: int = CALIBRATION_IMAGES,
) -> dict[str, object]:
    """Write the bundle at ``source`` with int8 to ``out``, which may be the same; tells of it.

    data: a folder of photos. ``images`` of them calibrate, at most, and as many others measure.
    Raises ValueError for a bundle that cannot be quantized, and for too few photos.
    """
    refuse_out(source, out)
    bundle = load_bundle(source)
    refuse_unquantizable(bundle)
    if images < _LEAST:
        raise ValueError(f"--images is {images}: give {_LEAST} or more")
    photos = read_photos(
        find_photos(data), bundle.preprocess, sides(bundle), at_most=2 * images, least=2 * _LEAST
    )
    half = len(photos) // 2
    print(f"{half} photos calibrate {len(bundle.answerable())} subnets", file=sys.stderr)
    ranges = calibrated(bundle, part(photos, slice(half)))
    name = data.resolve().name
    int8 = Int8(ranges, name, half, f"{name}, other photos", len(photos) - half, {})
    quantized = replace(bundle, int8=int8).at("int8")
    others = part(photos, slice(half, None))
    archs = dict.fromkeys(row.arch for row in bundle.frontier)
    print(f"{len(others)} others are answered by {len(archs)} in both precisions", file=sys.stderr)
    rows = {
        bundle.space.arch_id(arch): Int8Row.of(
            answered(bundle, arch, others), answered(quantized, arch, others)
        )
        for arch in archs
    }
    int8 = replace(int8, rows=rows)
    save_with_int8(source, out, int8)
    told = int8_entry(bundle.space, int8, archs).model_dump(mode="json", exclude={"confidence"})
    return {"bundle": str(out), "version": load_bundle(out).version, "int8": told}


def refuse_out(source: Path, out: Path) -> None:
    """Raises ValueError for a place that something else has, or where no folder can be made."""
    if out.exists() and out.resolve() != source.resolve():
        raise ValueError(f"{out} exists; give another place, or the bundle's own")
    refuse_unwritable(out)


def sides(bundle: Bundle) -> set[int]:
    """Of the images that the answers read, and the largest subnet."""
    archs = (*bundle.answerable(), bundle.space.largest)
    return {bundle.space.resolution(arch) for arch in archs}


def part(photos: Photos, rows: slice) -> Photos:
    """Some of them."""
    return replace(photos, pixels={side: each[rows] for side, each in photos.pixels.items()})


def calibrated(bundle: Bundle, photos: Photos) -> dict[str, np.ndarray]:
    """The ranges of the activations of all that the bundle answers, by id."""
    space = bundle.space
    return {
        space.arch_id(arch): observed_ranges(
            bundle.build_onnx(arch), _batches(photos, space.resolution(arch))
        )
        for arch in bundle.answerable()
    }


def observed_ranges(model: onnx.ModelProto, batches: Iterable[np.ndarray]) -> np.ndarray:
    """The least and the greatest of each value that is to be quantized: float32 (values, 2).

    model: a subnet in fp32, self-contained.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = quantized_values(model.graph.node)
    for kind in ("ReduceMin", "ReduceMax"):
        for name in names:
            out = f"{name}.{kind}"
            watched.graph.node.append(helper.make_node(kind, [name], [out], keepdims=0))
            watched.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, []))
    session = _session(watched)
    outputs = [one.name for one in watched.graph.output[len(model.graph.output) :]]
    seen = np.array([session.run(outputs, {INPUT: batch}) for batch in batches], np.float32)
    least, greatest = np.split(seen, 2, axis=1)
    return np.stack([least.min(0), greatest.max(0)], axis=1)


def answered(bundle: Bundle, arch: Arch, photos: Photos) -> np.ndarray:
    """The class that a subnet answers to each photo."""
    session = _session(bundle.build_onnx(arch))
    batches = _batches(photos, bundle.space.resolution(arch))
    said = [session.run([OUTPUT], {INPUT: batch})[0] for batch in batches]
    return np.concatenate([np.asarray(logits).argmax(1) for logits in said])


def _batches(photos: Photos, side: int) -> Iterator[np.ndarray]:
    for start in range(0, len(photos), _BATCH):
        yield photos.batch(slice(start, start + _BATCH), side)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(1, "cpu", convolutional=True),
        providers=["CPUExecutionProvider"],
    )
