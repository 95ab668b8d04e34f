"""Begin a training at weights that are there already, and say what was taken."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from models.nets.elastic import AbstractNet
from models.nets.normalize import FrozenStatistics
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import weight_slices
from trainer.data.run_data import batches_of
from trainer.data.splits import Splits
from trainer.engine.average import WeightAverage
from trainer.engine.state import TrainingState
from trainer.ranks import Ranks
from trainer.recipes.recipe import Recipe
from trainer.start.classifier import fit_classifier
from trainer.start.order import centred, in_order
from trainer.start.source import Source, find_start

CLASSIFIER = "classifier."


def begin(state: TrainingState, recipe: Recipe, splits: Splits, ranks: Ranks) -> None:
    """Put the recipe's start into a fresh state; a new classifier is fitted to the training images.

    Raises ValueError as ``find_start`` does. Nothing happens without a start.
    """
    source = find_start(recipe)
    if source is None:
        return
    weights, statistics = source.weights, source.statistics
    if not source.is_supernet and source.arch == source.space.largest:
        weights, statistics = in_order(source.space, weights, statistics)
        if statistics is not None:
            statistics = centred(source.space, weights, statistics)
    told = place(state.net, source, weights, splits.labels)
    if source.trained:
        mflops = ", ".join(f"{source.space.flops(arch) / 1e6:.2f}" for arch in source.trained)
        told += f"; of its subnets only those of {mflops} MFLOPs were trained"
    if recipe.statistics == "start" and statistics is not None:
        state.frozen = FrozenStatistics(statistics, recipe.device)
        told += "; BatchNorm keeps its statistics"
    if not has_classes_of(source, splits.labels) and ranks.is_first:
        images, right = fit_classifier(
            state.net,
            middle_resolution(state.net.space),
            state.frozen,
            batches_of(recipe, splits, splits.train, train=False),
            recipe.device,
        )
        told += f", fitted to {images:,} images, of which {100 * right:.1f} % are right then"
    if state.average is not None:
        state.average = WeightAverage(state.net, recipe.ema)
    state.keep_weights()
    if ranks.is_first:
        print(f"start {source.name}: {told}", file=sys.stderr)


@torch.no_grad()
def place(
    net: AbstractNet, source: Source, weights: Mapping[str, np.ndarray], labels: Sequence[str]
) -> str:
    """Copy weights into a supernet, where they belong; tells what was taken, left and made new.

    The classifier is taken only if it has as many classes and, where they have names, the same.
    """
    same = has_classes_of(source, labels)
    slices = weight_slices(source.space, source.arch)
    taken, total = 0, sum(p.numel() for p in net.parameters())
    for name, parameter in net.named_parameters():
        if name not in weights or (name.startswith(CLASSIFIER) and not same):
            continue
        part = parameter[slices[name]]
        part.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
        taken += part.numel()
    told = f"{taken:,} of {total:,} weights taken"
    if not same:
        left = sum(math.prod(weights[n].shape) for n in weights if n.startswith(CLASSIFIER))
        what = (
            f"of {source.space.num_classes} classes ({left:,})" if left else "for another pooling"
        )
        told += f"; left: its classifier {what}; new: one of {len(labels)}"
    new = total - taken - (0 if same else _classifier(net))
    return told + (f"; new beside it: {new:,}" if new else "")


def has_classes_of(source: Source, labels: Sequence[str]) -> bool:
    """Whether a start has a classifier of the same classes: as many, of the same names if any."""
    if f"{CLASSIFIER}weight" not in source.weights:
        return False
    same_names = source.labels is None or source.labels == tuple(labels)
    return len(labels) == source.space.num_classes and same_names


def middle_resolution(space: SearchSpace) -> Arch:
    """The largest subnet, at a resolution in the middle of those there are."""
    middle = {name: space.decision[name].choices for name in space.resolution.decisions}
    return space.arch(dict(space.largest) | {k: v[len(v) // 2] for k, v in middle.items()})


def _classifier(net: AbstractNet) -> int:
    return sum(p.numel() for name, p in net.named_parameters() if name.startswith(CLASSIFIER))
