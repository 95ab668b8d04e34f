"""Quantize a bundle on labelled images: int8 with its accuracies, and how sure it is.

    python -m trainer.quantize BUNDLE --data PATH --run runs/one --out NEW    # on a run's images
    python -m trainer.quantize BUNDLE --data PATH --out NEW                   # on others

Calibration images give the ranges of activations, and say how sure answers in 8 bits are; others
tell how right those are, beside full precision. With ``--run`` its held-out images calibrate, and
test images measure. Without it the data must have no test part, and the rows 0::2 calibrate. Where
there are no labels, ``python -m models quantize`` measures agreement alone. ``--out`` may be BUNDLE
itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from models.bundle.folder import Bundle, load_bundle, save_with_int8
from models.bundle.int8 import Int8, Int8Row
from models.bundle.manifest import int8_entry
from models.command import status_of
from models.converters.progress import Progress
from models.images.header import ImageError
from models.images.photos import Photos
from models.quantize import (
    CALIBRATION_IMAGES,
    calibrated,
    refuse_out,
    refuse_unquantizable,
    sides,
)
from models.space.arch import Arch
from trainer.command import bundle_parser, say_left_out
from trainer.data.reading import read_source
from trainer.data.run_data import refuse_parts
from trainer.data.sources import Rows, Source
from trainer.engine.log import Record
from trainer.engine.trained_on import parts_of_run
from trainer.intervals import LEAST_IMAGES, refuse_few
from trainer.pairs import fit_confidence
from trainer.scores import Scores
from trainer.served import labels_in, measure


def parts(source: Source, run: Path | None) -> tuple[tuple[Rows, str], tuple[Rows, str], bool]:
    """What calibrates and what measures, each with what it is.

    And whether broken images are left out, as a run does. Raises ValueError where that may be
    images that were trained on.
    """
    if run is not None:
        its = parts_of_run(source, run)
        tests = its.test, f"{source.name}, test images"
        return (its.held_out, its.held_out_name), tests, its.skip_broken
    refuse_parts(source, "calibrate")
    each = [(source.train.slice(rows), f"{source.name}, rows {rows}") for rows in ("0::2", "1::2")]
    return each[0], each[1], False


def quantize(options: argparse.Namespace) -> Record:
    """What the command does. Raises ValueError for a user's mistake."""
    refuse_out(options.bundle, options.out)
    bundle = load_bundle(options.bundle)
    refuse_unquantizable(bundle)
    source = read_source(str(options.data))
    (calibrating, calibrated_on), (others, measured_on), skip_broken = parts(source, options.run)
    refuse_few(min(len(calibrating), len(others)))
    for rows in (calibrating, others):
        labels_in(bundle, source.classes, rows)  # a class that the bundle lacks ends it here
    some = np.unique(np.linspace(0, len(calibrating) - 1, options.images).astype(np.int64))
    broken: list[str] = []
    photos = decoded(bundle, calibrating.take(some), broken if skip_broken else None)
    refuse_few(len(photos))
    frontier = list(dict.fromkeys(row.arch for row in bundle.frontier))
    with Progress() as progress:

        def measured(
            which: Bundle, archs: Sequence[Arch], rows: Rows, *, fit: bool = False
        ) -> list[Scores]:
            labels = labels_in(bundle, source.classes, rows)
            told = f"{len(archs)} subnets in {which.precision}, {len(rows):,} images"
            answers = [(float(bundle.space.flops(arch)), arch) for arch in archs]

            def track(pieces: range) -> Iterable[int]:
                return progress.track(pieces, told, len(pieces))

            found, read, left_out = measure(
                which, answers, rows, labels, skip_broken=skip_broken, fit=fit, track=track
            )
            refuse_few(len(read))
            broken.extend(left_out)
            return [one.scores for one in found]

        progress.message(f"{len(photos)} images calibrate {len(bundle.answerable())} subnets")
        int8 = Int8(
            calibrated(bundle, photos), calibrated_on, len(photos), measured_on, len(others), {}
        )
        quantized = replace(bundle, int8=int8).at("int8")
        fp32 = measured(bundle, frontier, others)
        small = measured(quantized, frontier, others)
        rows = [
            Int8Row.of(one.first, own.first, own.labels)
            for one, own in zip(fp32, small, strict=True)
        ]
        ids, images = map(bundle.space.arch_id, frontier), len(small[0].labels)
        int8 = replace(int8, images=images, rows=dict(zip(ids, rows, strict=True)))
        if bundle.confidence is not None:
            sure = measured(quantized, bundle.archs(), calibrating, fit=True)
            scores = dict(zip(map(bundle.space.flops, bundle.archs()), sure, strict=True))
            int8 = replace(int8, confidence=fit_confidence(scores, calibrated_on))
    say_left_out(broken)
    save_with_int8(options.bundle, options.out, int8)
    return {
        "bundle": str(options.out),
        "version": load_bundle(options.out).version,
        "previous": bundle.version,
        "int8": int8_entry(bundle.space, int8, frontier).model_dump(mode="json"),
    }


def decoded(bundle: Bundle, rows: Rows, broken: list[str] | None = None) -> Photos:
    """Images at every resolution that answers read, as the server decodes them.

    ``broken`` gets those that cannot be decoded, each with its reason; without it the first of them
    raises ValueError.
    """
    largest = bundle.space.resolution(bundle.space.largest)
    photos: list[Image.Image | np.ndarray] = []
    for index in range(len(rows)):
        try:
            photos.append(bundle.preprocess.decode(rows.read(index), largest))
        except (ImageError, OSError) as error:
            reason = f"{rows.where(index)}: {error}"
            if broken is None:
                raise ValueError(reason) from error
            broken.append(reason)
    pixels = {
        side: np.stack([bundle.preprocess.pixels(photo, side) for photo in photos])
        for side in sides(bundle)
    }
    return Photos(bundle.preprocess, pixels, ())


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for a mistake of the user's, 130 when stopped by Ctrl-C."""
    parser = bundle_parser("trainer.quantize", __doc__)
    parser.add_argument(
        "--run",
        type=Path,
        help="a run's folder: images of the data that it held out calibrate, test images measure",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=CALIBRATION_IMAGES,
        help=f"take ranges from at most so many images (default: {CALIBRATION_IMAGES})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="BUNDLE",
        help="a new folder; or the bundle's own, which then holds both",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.images < LEAST_IMAGES:
            raise ValueError(f"--images is {options.images}: give {LEAST_IMAGES} or more")
        done = quantize(options)
        print(json.dumps(done) if options.json else table(load_bundle(options.out).at("int8")))

    return status_of(work, stopped="stopped; the bundle is as it was")


def table(bundle: Bundle) -> str:
    """How good int8 is, for people."""
    assert bundle.int8 is not None
    entry = int8_entry(bundle.space, bundle.int8, [row.arch for row in bundle.frontier])
    lines = [
        f"{bundle.name}, version {bundle.version}: {entry.images:,} images ({entry.measured_on})",
        "  MFLOPs   right %: fp32      int8   95 %             as fp32 %   95 %",
    ]
    for row in entry.rows:
        right, own = row.fp32_accuracy or 0.0, row.accuracy or 0.0
        low, high = row.accuracy_95 or (0.0, 0.0)
        least, most = row.agreement_95
        lines.append(
            f"{row.flops / 1e6:8.2f} {100 * right:15.2f} {100 * own:9.2f}   {100 * low:5.2f} to "
            f"{100 * high:5.2f}  {100 * row.agreement:9.2f}   {100 * least:5.2f} to "
            f"{100 * most:5.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
