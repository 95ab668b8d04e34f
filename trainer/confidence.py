"""Fit how sure a bundle is, so that requests may say how sure they want an answer to be.

    python -m trainer.confidence BUNDLE --data photos/              # images that trained nothing
    python -m trainer.confidence BUNDLE --data PATH --run runs/one  # those that this run held out

A run and ``benchmarks.imagenet_mobile`` do this themselves; here it is for a bundle that is there.
Each answer gets a temperature, by which its logits are divided, and each budget a subnet that
answers first. Both go into the bundle, whose version changes. Test images must stay out of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from models.bundle.folder import add_confidence, load_bundle
from models.bundle.manifest import confidence_entry
from models.command import status_of
from models.converters.progress import Progress
from trainer.command import add_measuring, bundle_parser, check_threads, say_left_out
from trainer.data.reading import read_source
from trainer.data.run_data import refuse_parts
from trainer.data.sources import Rows, Source
from trainer.engine.log import Record
from trainer.engine.trained_on import parts_of_run
from trainer.intervals import refuse_few
from trainer.pairs import fit_confidence
from trainer.served import labels_in, measure, some_answers


def held_out(source: Source, run: Path | None) -> tuple[Rows, str, bool]:
    """The images to fit on, what they are, and whether broken ones are left out, as a run does.

    Raises ValueError where they may be others'.
    """
    if run is not None:
        its = parts_of_run(source, run)
        return its.held_out, its.held_out_name, its.skip_broken
    refuse_parts(source, "to take")
    return source.train, source.name, False


def fit(options: argparse.Namespace) -> Record:
    """What the command does. Raises ValueError for a user's mistake."""
    bundle = load_bundle(options.bundle)
    source = read_source(str(options.data))
    rows, name, skip_broken = held_out(source, options.run)
    if options.rows != ":":
        rows, name = rows.slice(options.rows), f"{name}, rows {options.rows}"
    refuse_few(len(rows))
    answers = [(float(bundle.space.flops(arch)), arch) for arch in bundle.archs()]
    if options.budgets is not None:
        answers = some_answers(bundle, options.budgets)
    with Progress() as progress:

        def track(pieces: range) -> Iterable[int]:
            return progress.track(pieces, f"{len(rows):,} images", len(pieces))

        measured, read, broken = measure(
            bundle,
            answers,
            rows,
            labels_in(bundle, source.classes, rows),
            threads=options.threads,
            skip_broken=skip_broken,
            fit=True,
            track=track,
        )
    refuse_few(len(read))
    say_left_out(broken)
    scores = {bundle.space.flops(one.arch): one.scores for one in measured}
    confidence = fit_confidence(scores, name)
    version = add_confidence(options.bundle, confidence)
    return {
        "bundle": str(options.bundle),
        "version": version,
        "previous": bundle.version,
        "confidence": confidence_entry(confidence).model_dump(mode="json"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for a mistake of the user's, 130 when stopped by Ctrl-C."""
    parser = bundle_parser("trainer.confidence", __doc__)
    add_measuring(parser)
    parser.add_argument(
        "--run", type=Path, help="a run's folder: take the images of the data that it held out"
    )
    parser.add_argument(
        "--budgets", type=int, help="fit the answers at so many budgets (default: all answers)"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.budgets is not None and options.budgets < 2:
            raise ValueError(f"--budgets is {options.budgets}: give 2 or more")
        check_threads(options.threads)
        done = fit(options)
        if options.json:
            print(json.dumps(done))
        else:
            print(f"{options.bundle} knows how sure it is; its version is {done['version']} now")

    return status_of(work, stopped="stopped; the bundle is as it was")


if __name__ == "__main__":
    sys.exit(main())
