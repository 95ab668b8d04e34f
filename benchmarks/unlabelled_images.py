"""Do images without labels make a better generator than the resource loss alone?

    python -m benchmarks.unlabelled_images --data cifar10.parquet
    python -m benchmarks.unlabelled_images --data PATH --seeds 5 --json

What ``python -m models convert --data`` does, on a supernet that was trained, with labels to tell
how well. For each seed a fresh generator learns from the resource loss alone; one copy of it goes
on with images as a converter's does, another with the resource loss for as many steps. Then all
are asked for the same budgets. Supernet, calibration images and test images are the same for
all; what teaches the generator are training images that trained no weight.
``val`` is held-out training images, on which the method was decided; ``test`` decided nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import machine
from models.bundle.folder import Bundle, load_bundle
from models.converters.deployment import GENERATOR_STEPS, IMAGE_STEPS
from models.converters.distillation import Distillation, ask_largest, calibration_batches, distil
from models.generator.decode import decode_all
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets, policy_of
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.images.photos import Photos
from models.nets import build_net
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.space.arch import Arch
from models.space.relaxed import RelaxedFlops
from shiftnas_serve.settings import DEFAULT_BUNDLE
from trainer.data.reading import load_splits
from trainer.data.run_data import evaluation_batches
from trainer.data.splits import AbstractSplit, LabelledImages, Splits
from trainer.evaluate import accuracy

_KINDS = ("resource loss", "resource loss, longer", "images")
_CALIBRATION_IMAGES = 1024


class Judge:
    """Accuracy of archs of one supernet, each measured once."""

    def __init__(self, bundle: Bundle, net: AbstractNet, splits: Splits, images: int) -> None:
        preprocess = bundle.preprocess
        self._net = net
        self._calibration = photos_of(bundle, splits.train, slice(0, _CALIBRATION_IMAGES))
        self._splits = {
            name: evaluation_batches(_first(split, images), preprocess.mean, preprocess.std, "cpu")
            for name, split in (("val", splits.held_out), ("test", splits.test))
        }
        self._known: dict[Arch, dict[str, float]] = {}

    def accuracies(self, arch: Arch) -> dict[str, float]:
        """In 0..1, on held-out training images and on test images."""
        if arch not in self._known:
            side = self._net.space.resolution(arch)
            batches = calibration_batches(self._calibration, side, _CALIBRATION_IMAGES)
            statistics = calibrate(self._net, arch, batches)
            self._known[arch] = {
                name: accuracy(self._net, arch, statistics, batches, "cpu")
                for name, batches in self._splits.items()
            }
        return self._known[arch]


def _first(split: AbstractSplit, images: int) -> LabelledImages:
    fetched = split.fetch(np.arange(min(images, len(split))))
    return LabelledImages(fetched.images, fetched.labels)


def photos_of(bundle: Bundle, split: AbstractSplit, rows: slice) -> Photos:
    """Images of a split, as if they had been read from a folder."""
    fetched = split.fetch(np.arange(len(split))[rows])
    pixels = np.ascontiguousarray(fetched.images.permute(0, 2, 3, 1).numpy())
    return Photos(bundle.preprocess, {split.resolution: pixels}, ())


def measure(
    bundle: Bundle,
    splits: Splits,
    *,
    seeds: int,
    budgets: int,
    images: int,
    steps: int,
    judged: int,
) -> list[dict[str, object]]:
    """A row for each seed and kind of generator."""
    space = bundle.space
    net = build_net(space).to(memory_format=torch.channels_last)
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in bundle.weights.items()})
    net.requires_grad_(False)
    judge = Judge(bundle, net, splits, judged)
    photos = photos_of(bundle, splits.held_out, slice(0, images))
    teacher = ask_largest(net, photos)
    loss = ResourceLoss(RelaxedFlops(space.flops_rule), budgets=32)
    asked = even_budgets(space, budgets + 1)[:-1]  # the last is the largest subnet for all
    rows: list[dict[str, object]] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        made = {kind: ArchitectureGenerator(space) for kind in _KINDS[:1]}
        for kind in _KINDS:
            rng = torch.Generator().manual_seed(seed)
            start = time.process_time()
            if kind != _KINDS[0]:
                made[kind] = copy.deepcopy(made[_KINDS[0]])
            if kind == "images":
                distil(made[kind], net.train(), teacher, loss, Distillation(), steps=steps, rng=rng)
            else:
                fit_to_budgets(
                    made[kind],
                    loss,
                    steps=GENERATOR_STEPS if kind == _KINDS[0] else steps,
                    learning_rate=3e-3 if kind == _KINDS[0] else Distillation().learning_rate,
                    temperatures=(1.0, 0.3),
                    rng=rng,
                )
            elapsed = time.process_time() - start
            policy = policy_of(made[kind])
            archs = decode_all(space, policy.log_probabilities_of(asked), asked)
            found = [judge.accuracies(arch) for arch in archs]
            rows.append(
                {
                    "seed": seed,
                    "kind": kind,
                    "processor_s": round(elapsed, 1),
                    "flops": [space.flops(arch) for arch in archs],
                    **{n: [round(each[n], 4) for each in found] for n in ("val", "test")},
                }
            )
            show(rows[-1])
    return rows


def show(row: dict[str, object]) -> None:
    """One line on stderr, as it comes."""
    val, test = (np.array(row[name]) for name in ("val", "test"))
    each = " ".join(f"{100 * one:.1f}" for one in test)
    print(
        f"seed {row['seed']}  {row['kind']:21}  {row['processor_s']:>6} s  "
        f"val {100 * val.mean():.2f}  test {100 * test.mean():.2f}   {each}",
        file=sys.stderr,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unlabelled_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="the data set the bundle was trained on")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", type=int, default=8, help="below the largest subnet")
    parser.add_argument("--images", type=int, default=256, help="that teach the generator")
    parser.add_argument("--steps", type=int, default=IMAGE_STEPS, help="with images")
    parser.add_argument("--judged", type=int, default=10_000, help="images of each accuracy")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        counts = ("seeds", "budgets", "images", "steps", "judged")
        if min(getattr(options, name) for name in counts) < 1:
            raise ValueError(f"--{', --'.join(counts)} take at least 1")
        bundle = load_bundle(options.bundle)
        side = bundle.space.resolution(bundle.space.largest)
        splits = load_splits(options.data, held_out_share=0.1, seed=0, resolution=side)
        if tuple(splits.labels) != bundle.labels:
            raise ValueError(f"{options.data} has other classes than {options.bundle}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = measure(
        bundle,
        splits,
        seeds=options.seeds,
        budgets=options.budgets,
        images=options.images,
        steps=options.steps,
        judged=options.judged,
    )
    print(json.dumps({"benchmark": "unlabelled_images", "rows": rows, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
