"""How right a bundle is, at every budget.

    python -m trainer.evaluate models/zoo/imagenet-mobile --data photos/      # a folder a class
    python -m trainer.evaluate runs/flowers/bundle --data flowers/ --run runs/flowers --budgets 12
    python -m trainer.evaluate BUNDLE --data photos/ --against OTHER    # labels: what OTHER answers
    python -m trainer.evaluate BUNDLE --data PATH --budgets 64 --plot frontier.png

Data may be of any kind that training reads; where there is a test split, that alone is taken, and
with ``--run`` what that run kept apart as one. Without either all images count, also those that
trained.
Classes are matched by name. Images are read and subnets run as the server does it. Intervals are
95 % (Wilson). If the bundle knows how sure it is, the table also says what requests with a
confidence cost, how right they are, and how much that gains over one subnet of as many FLOPs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from models.bundle.folder import Bundle, load_bundle
from models.bundle.value import Precision
from models.command import status_of
from models.converters.progress import Progress
from models.outputs import plot_file
from trainer.command import add_measuring, bundle_parser, check_threads, say_left_out
from trainer.data.reading import read_source, title_of
from trainer.engine.log import Record
from trainer.engine.trained_on import parts_of_run
from trainer.pairs import Curve, curve, drawn_budgets
from trainer.report.answers import write_plot
from trainer.scores import confused
from trainer.served import Measured, as_record, labels_in, measure, some_answers


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A bundle's answers on a data set, and images that were left out, with the reason."""

    bundle: Bundle
    data: str
    measured: list[Measured]
    curves: list[Curve]
    broken: list[str]


def evaluate_bundle(options: argparse.Namespace) -> Evaluated:
    """What the command does. Raises ValueError for a user's mistake."""
    bundle = load_bundle(options.bundle).at(options.precision)
    source = read_source(str(options.data))
    rows, data = source.train if source.test is None else source.test, source.name
    if options.run is not None:
        rows = parts_of_run(source, options.run).test
        data = f"{source.name}, test images"
    elif source.test is None and title_of(source) == bundle.provenance.get("data"):
        print(
            f"{bundle.name} was trained on {source.name}: images that it has seen are counted too; "
            "--run RUN takes those that its run has kept for testing",
            file=sys.stderr,
        )
    rows = rows.slice(options.rows)
    pairs = drawn_budgets(bundle)
    archs = {arch for _, arch in some_answers(bundle, options.budgets)}.union(*pairs.values())
    flops = bundle.space.flops
    answers = [(float(flops(arch)), arch) for arch in sorted(archs, key=flops)]
    with Progress() as progress:

        def track(pieces: range) -> Iterable[int]:
            return progress.track(pieces, f"{len(rows):,} images", len(pieces))

        if options.against is None:
            other = "compare with another bundle instead (--against), or "
            labels = labels_in(bundle, source.classes, rows, instead=other)
        else:
            other = load_bundle(options.against)
            if other.labels != bundle.labels:
                raise ValueError(f"{options.against} tells other classes apart than {bundle.name}")
            largest = some_answers(other, 2)[-1:]
            (reference,), read, _ = measure(
                other, largest, rows, None, threads=options.threads, skip_broken=True, track=track
            )
            labels = np.full(len(rows), -1)
            labels[read] = reference.scores.labels
        measured, _, broken = measure(
            bundle, answers, rows, labels, threads=options.threads, skip_broken=True, track=track
        )
    scores = {flops(one.arch): one.scores for one in measured}
    curves = [curve(scores, budget, [flops(a) for a in pair]) for budget, pair in pairs.items()]
    return Evaluated(bundle, data, measured, curves, broken)


def mean_over_budgets(done: Evaluated) -> tuple[float, float]:
    """Accuracy and FLOPs where budgets are spread evenly from the smallest subnet to the largest.

    Each gets the largest of the measured answers within it; the bundle may have more.
    """
    space = done.bundle.space
    starts = np.array([space.flops(one.arch) for one in done.measured], dtype=float)
    shares = np.diff(starts, append=max(float(space.max_flops), starts[-1]))
    if not shares.any():
        shares[-1] = 1.0
    accuracies = np.array([one.scores.accuracy for one in done.measured])
    shares /= shares.sum()
    return float(shares @ accuracies), float(shares @ starts)


def table(done: Evaluated) -> str:
    """The answers for people."""
    bundle = done.bundle
    lines = ["  MFLOPs   images   right %     95 %           top 5 %"]
    for one in done.measured:
        low, high = one.scores.interval
        lines.append(
            f"{bundle.space.flops(one.arch) / 1e6:8.2f} {len(one.scores.labels):8,} "
            f"{100 * one.scores.accuracy:9.2f}   {100 * low:5.2f} to {100 * high:5.2f} "
            f"{100 * float(one.scores.top5.mean()):9.2f}"
        )
    accuracy, flops = mean_over_budgets(done)
    lines.append(
        f"budgets spread evenly over these {len(done.measured)} answers: {100 * accuracy:.2f} % "
        f"for {flops / 1e6:.2f} MFLOPs"
    )
    for one in done.curves:
        lines += curve_table(one)
    largest = done.measured[-1].scores
    known = [
        (right / seen, label)
        for label, (right, seen) in zip(bundle.labels, largest.per_class(), strict=True)
        if seen
    ]
    least = ", ".join(f"{label} {100 * share:.0f} %" for share, label in sorted(known)[:5])
    taken = [
        f"{bundle.labels[i]} for {bundle.labels[j]} {count} times"
        for i, j, count in confused(largest.confusion())[:5]
    ]
    lines.append(f"the largest knows least: {least}")
    lines.append(f"and takes {', '.join(taken)}" if taken else "and is never wrong")
    return "\n".join(lines)


def curve_table(pair: Curve) -> list[str]:
    """What a pair does at every confidence, for people."""
    bound = "any budget" if pair.budget_flops is None else f"{pair.budget_flops / 1e6:.2f} MFLOPs"
    return [
        f"with a confidence, within {bound}: {pair.first_flops / 1e6:.2f} MFLOPs first, and "
        f"{pair.second_flops / 1e6:.2f} where that is not sure",
        "confidence  first alone %  mean MFLOPs   right %     95 %           than one subnet",
        *(
            f"{point.confidence:10.2f} {100 * point.sure:14.1f} {point.spent_flops / 1e6:12.2f} "
            f"{100 * point.accuracy:9.2f}   {100 * point.accuracy_95[0]:5.2f} to "
            f"{100 * point.accuracy_95[1]:5.2f}  {100 * point.gain:+5.2f} "
            f"({100 * point.gain_95[0]:+.2f} to {100 * point.gain_95[1]:+.2f})"
            for point in pair.points
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for a mistake of the user's, 130 when stopped by Ctrl-C."""
    parser = bundle_parser("trainer.evaluate", __doc__)
    add_measuring(parser)
    parser.add_argument(
        "--run", type=Path, help="a run's folder: take the images of the data that it tests on"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="BUNDLE",
        help="compare with what this bundle's largest subnet answers, in place of labels",
    )
    parser.add_argument(
        "--budgets",
        type=int,
        default=8,
        help="evaluate so many, each a fixed times the one before (default: 8)",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision in which subnets compute (default: fp32)",
    )
    parser.add_argument(
        "--plot", type=plot_file, metavar="FILE", help="plot accuracy by FLOPs into this file"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.budgets < 2:
            raise ValueError(f"--budgets is {options.budgets}: give 2 or more")
        check_threads(options.threads)
        done = evaluate_bundle(options)
        say_left_out(done.broken)
        print(json.dumps(as_document(done, options)) if options.json else table(done), flush=True)
        if options.plot is not None:
            write_plot(options.plot, done.bundle, done.measured, done.curves)

    return status_of(work)


def as_document(done: Evaluated, options: argparse.Namespace) -> Record:
    """The answers for JSON."""
    accuracy, flops = mean_over_budgets(done)
    return {
        "bundle": str(options.bundle),
        "version": done.bundle.version,
        "precision": done.bundle.precision,
        "data": done.data,
        "against": None if options.against is None else str(options.against),
        "broken": done.broken,
        "mean_accuracy": accuracy,
        "mean_flops": flops,
        "mean_of_answers": len(done.measured),
        "answers": [as_record(done.bundle, one) for one in done.measured],
        "confidence": json.loads(json.dumps([one.to_json() for one in done.curves])),
    }


if __name__ == "__main__":
    sys.exit(main())
