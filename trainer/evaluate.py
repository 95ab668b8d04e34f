"""How right a bundle is, at every budget.

    python -m trainer.evaluate models/zoo/imagenet-mobile --data photos/      # a folder a class
    python -m trainer.evaluate runs/flowers/bundle --data flowers/ --budgets 12 --json
    python -m trainer.evaluate BUNDLE --data photos/ --against OTHER    # labels: what OTHER answers
    python -m trainer.evaluate BUNDLE --data PATH --budgets 64 --plot frontier.png

Data of any kind that training reads; of a set with a test split, that. Classes are matched by name.
Answers are those that are served: same decoding, same graphs. Intervals are 95 % (Wilson). Of a
bundle that knows how sure it is, also what requests with a confidence cost and how right they are,
and how much better that is than one subnet of as many FLOPs.
Training evaluates with ``evaluate``, on weights that are still moving.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from models import PRODUCT
from models.bundle.folder import Bundle, load_bundle
from models.converters.progress import Progress
from models.generator.decode import decode_all
from models.generator.network import ArchitectureGenerator
from models.generator.report import GeneratorReport, even_budgets, policy_of, report_generator
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.normalize import BatchStatistics, TensorStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from trainer.data.batches import Batch, Batches
from trainer.data.reading import read_source
from trainer.data.sources import Rows
from trainer.engine.log import Record
from trainer.pairs import Curve, curve, drawn_budgets
from trainer.ranks import ALONE, Ranks
from trainer.scores import confused
from trainer.served import Measured, measure, some_answers

Item = TypeVar("Item")

SUFFICIENCY_IMAGES = 128
"""Held-out images on which Eq. 4 is measured at an evaluation."""


class Abandoned(Exception):
    """An evaluation was asked to stop before its end."""


def until(stop: Callable[[], bool], items: Iterable[Item]) -> Iterator[Item]:
    """The items, as long as nothing asks to stop. Raises Abandoned then."""
    for item in items:
        if stop():
            raise Abandoned
        yield item


@dataclass(frozen=True)
class Evaluation:
    """Of the supernet and the generator at one step.

    entropy: of the policy at each group, nats. rows: what is served at a budget (budget_flops,
    flops, arch), its top-1 accuracy on held-out images (val_accuracy, in 0..1) and gradient_norm.
    """

    generator: GeneratorReport
    entropy: list[float]
    rows: list[Record]


def answers(generator: ArchitectureGenerator, budgets: Sequence[float]) -> list[Arch]:
    """What is served at each budget: the generator's policy, decoded within the budget."""
    return decode_all(policy_of(generator), budgets)


def entropies(generator: ArchitectureGenerator, groups: Sequence[int]) -> list[float]:
    """Entropy in nats of the generator's policy at each group: 0 is one arch and no other."""
    with torch.no_grad():
        _, log_probabilities = generator(torch.tensor(groups, dtype=torch.float64))
    each = [-(p.exp() * p).sum(1) for p in log_probabilities.values()]
    return torch.stack(each).sum(0).tolist()


def calibrated(
    net: AbstractNet, arch: Arch, images: Iterable[Tensor], device: str
) -> TensorStatistics:
    """BatchNorm statistics of an arch on cached training batches."""
    resolution = net.space.resolution(arch)
    return calibrate(net, arch, (at_resolution(i.to(device), resolution) for i in images))


def accuracy(
    net: AbstractNet,
    arch: Arch,
    statistics: BatchStatistics,
    data: Iterable[Batch],
    device: str,
) -> float:
    """Top-1 accuracy of a subnet, in 0..1."""
    return float(right_answers(net, arch, statistics, data, device).mean())


@torch.inference_mode()
def right_answers(
    net: AbstractNet,
    arch: Arch,
    statistics: BatchStatistics,
    data: Iterable[Batch],
    device: str,
) -> np.ndarray:
    """Which images a subnet gets right: bool, (images,), in the order of the data."""
    was_training = net.training
    net.eval()
    resolution = net.space.resolution(arch)
    right: list[Tensor] = []
    for batch in data:
        images = at_resolution(batch.images.to(device), resolution)
        predicted = net(images, arch, statistics).argmax(1).cpu()
        right.append(predicted == batch.labels.cpu())
    net.train(was_training)
    return torch.cat(right).numpy()


def gradient_norm(net: AbstractNet, arch: Arch, batch: Batch, device: str) -> float:
    """Eq. 4, the paper's sufficiency: the norm of the gradient of a subnet's weights.

    Of the loss on at most 128 images of a batch, by which BatchNorm normalizes; 0 where a subnet
    has converged. Changes nothing.
    """
    images, labels = batch.images[:SUFFICIENCY_IMAGES], batch.labels[:SUFFICIENCY_IMAGES]
    images = at_resolution(images.to(device), net.space.resolution(arch))
    weights = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    loss = F.cross_entropy(functional_call(net, weights, (images, arch)), labels.to(device))
    found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return float(torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt())


def evaluate(
    net: AbstractNet,
    generator: ArchitectureGenerator,
    groups: Sequence[int],
    *,
    budgets: int,
    statistics_of: Callable[[Arch], BatchStatistics],
    data: Batches,
    device: str,
    archs: Sequence[Arch] = (),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """What is served at so many even budgets, how often it is right on ``data``, and Eq. 4.

    ``statistics_of``: BatchNorm's, of an arch.

    archs: in place of what the generator answers, where a run trains them and no others. All ranks
    have the same images, and share the budgets out. Raises Abandoned in all of them as
    soon as ``stop`` says so in one, which it is asked before every batch.
    """
    space = generator.space
    asked = [float(space.flops(arch)) for arch in archs] or even_budgets(space, budgets)
    archs = archs or answers(generator, asked)
    found: list[tuple[float, float]] = []
    first = data.batch(0, 0)
    abandoned = False
    try:
        found = [
            (
                accuracy(net, arch, statistics_of(arch), until(stop, data), device),
                gradient_norm(net, arch, first, device),
            )
            for arch in ranks.shared_out(archs)
        ]
    except Abandoned:
        abandoned = True
    if ranks.most(abandoned):
        raise Abandoned
    rows: list[Record] = [
        {
            "budget_flops": budget,
            "flops": space.flops(arch),
            "val_accuracy": right,
            "gradient_norm": norm,
            "arch": space.arch_to_json(arch),
        }
        for budget, arch, (right, norm) in zip(asked, archs, ranks.gathered(found), strict=True)
    ]
    return Evaluation(report_generator(generator), entropies(generator, groups), rows)


# ------------------------------------------------------------------------------ a bundle's answers


def as_record(bundle: Bundle, measured: Measured) -> Record:
    """One answer for JSON: accuracy with its interval, top-5, confusion, per class."""
    scores, space = measured.scores, bundle.space
    return {
        "budget_flops": measured.budget_flops,
        "id": space.arch_id(measured.arch),
        "flops": space.flops(measured.arch),
        "images": len(scores.labels),
        "accuracy": scores.accuracy,
        "accuracy_95": list(scores.interval),
        "top5": float(scores.top5.mean()),
        "per_class": {
            label: {"right": right, "images": seen}
            for label, (right, seen) in zip(bundle.labels, scores.per_class(), strict=True)
            if seen
        },
        "confusion": [
            {"label": bundle.labels[i], "answer": bundle.labels[j], "images": count}
            for i, j, count in confused(scores.confusion())
        ],
    }


def labels_in(bundle: Bundle, classes: Sequence[str], rows: Rows) -> np.ndarray:
    """The images' labels as the bundle numbers them. Raises ValueError for a class it lacks."""
    place = {label: index for index, label in enumerate(bundle.labels)}
    used = np.unique(rows.labels)
    missing = [classes[int(label)] for label in used if classes[int(label)] not in place]
    if missing:
        raise ValueError(
            f"{bundle.name} has no class {missing[0]!r}"
            + (f" and {len(missing) - 1} more of the data's" if len(missing) > 1 else "")
            + "; compare with another bundle instead (--against), or name the folders as its labels"
        )
    return np.array([place.get(name, -1) for name in classes])[rows.labels]


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
    bundle = load_bundle(options.bundle)
    source = read_source(str(options.data))
    rows = source.train if source.test is None else source.test
    pairs = drawn_budgets(bundle)
    archs = {arch for _, arch in some_answers(bundle, options.budgets)}.union(*pairs.values())
    flops = bundle.space.flops
    answers = sorted((float(flops(arch)), arch) for arch in archs)
    with Progress() as progress:

        def track(pieces: range) -> Iterable[int]:
            return progress.track(pieces, f"{len(rows):,} images", len(pieces))

        if options.against is None:
            labels = labels_in(bundle, source.classes, rows)
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
    return Evaluated(bundle, source.name, measured, curves, broken)


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
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description=(__doc__ or "").split("Training evaluates")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=PRODUCT)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--data", required=True, help="as trainer.run reads it")
    parser.add_argument(
        "--against", type=Path, metavar="BUNDLE", help="count agreement with this one's largest"
    )
    parser.add_argument("--budgets", type=int, default=8, help="even over the range (8)")
    parser.add_argument("--threads", type=int, default=1, help="of each subnet (1)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    options = parser.parse_args(arguments)
    try:
        if options.budgets < 2:
            raise ValueError(f"--budgets is {options.budgets}: give 2 or more")
        done = evaluate_bundle(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    for image in done.broken:
        print(f"left out {image}", file=sys.stderr)
    if not options.json:
        print(table(done))
        return 0
    result: Record = {
        "bundle": str(options.bundle),
        "version": done.bundle.version,
        "data": done.data,
        "against": None if options.against is None else str(options.against),
        "broken": done.broken,
        "answers": [as_record(done.bundle, one) for one in done.measured],
        "confidence": json.loads(json.dumps([one.to_json() for one in done.curves])),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
