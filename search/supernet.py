"""What is searched: a trained supernet and its generator, out of a run or a bundle, with images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from models.bundle.folder import MANIFEST, load_bundle
from models.bundle.value import SHARED, unpack_shared
from models.generator.network import ArchitectureGenerator
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.nets.normalize import FrozenStatistics
from models.space.arch import Arch
from models.spaces import get_space
from trainer.data.batches import Batches
from trainer.data.reading import load_splits
from trainer.data.run_data import evaluation_batches, read_splits
from trainer.data.splits import Splits
from trainer.engine.average import served_weights
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.state import frozen_of
from trainer.engine.trained_on import in_words, is_same, skipped_broken, words_of
from trainer.evaluation import accuracy, answers, calibrated
from trainer.job import RECIPE_NAME
from trainer.recipes.config import read_recipe

HELD_OUT_SHARE = 0.1
CALIBRATION_BATCHES = 16
CALIBRATION_BATCH = 128


@dataclass(frozen=True)
class Supernet:
    """Ready to be searched: subnets are calibrated on training images and tried on held-out ones.

    Held out are the images that the run held out, if the data is the run's. answer: the
    generator's arch for a budget in FLOPs. frozen: BatchNorm's statistics, if all archs share them.
    version: of the weights; others have another one.
    """

    net: AbstractNet
    answer: Callable[[float], Arch]
    calibration: Sequence[Tensor]
    held_out: Batches
    test: Batches
    frozen: FrozenStatistics | None
    version: str

    def accuracy(self, arch: Arch, *, test: bool = False) -> float:
        """Top-1 accuracy of an arch, in 0..1, with BatchNorm statistics of its own or of all."""
        statistics = self.frozen or calibrated(self.net, arch, self.calibration, "cpu")
        data = self.test if test else self.held_out
        return accuracy(self.net, arch, statistics, data, "cpu")


def open_supernet(path: Path, data: str) -> Supernet:
    """From the folder of a run or of a bundle, and the data that it was trained on.

    Raises ValueError for anything else, for what trained a few archs alone, and for data of other
    classes, in another order or of another number of images. Broken images are left out if its run
    left them out.
    """
    # (Path.is_file raises for some names)
    if os.path.isfile(path / RECIPE_NAME):  # noqa: PTH113
        return _of_run(path, data)
    if os.path.isfile(path / MANIFEST):  # noqa: PTH113
        return _of_bundle(path, data)
    raise ValueError(f"{path} is neither a run ({RECIPE_NAME}) nor a bundle ({MANIFEST})")


def _of_run(path: Path, data: str) -> Supernet:
    recipe = read_recipe(path / RECIPE_NAME)
    _refuse_few(path, len(recipe.sampler_options.archs))
    state = load_checkpoint(path)
    splits = read_splits(recipe.replace(data=data))
    space = get_space(recipe.space, len(splits.labels))
    net, generator = build_net(space), ArchitectureGenerator(space)
    weights = served_weights(state)
    here = in_words(splits)
    its = state.get("trained_on", here)  # older checkpoints do not say it
    fits = is_same(its, here, counts=not recipe.skip_broken)
    if not fits or any(weights[w.name].shape != w.shape_at(space.largest) for w in space.weights):
        _refuse(data, here, path, "other classes" if fits else its)
    if (path / "bundle" / MANIFEST).is_file():  # a checkpoint does not have all names
        _check_labels(load_bundle(path / "bundle").labels, splits, path, data)
    net.load_state_dict(weights)
    generator.load_state_dict(state["generator"])
    return with_images(
        net,
        lambda budget: answers(generator, [budget])[0],
        splits,
        seed=recipe.seed,
        mean=recipe.mean,
        std=recipe.std,
        version=_version_of(weights),
        frozen=frozen_of(state, "cpu"),
    )


def _of_bundle(path: Path, data: str) -> Supernet:
    bundle = load_bundle(path)
    _refuse_few(path, len(bundle.trained_archs))
    space, made = bundle.space, bundle.provenance
    seed = made.get("seed")
    seed = seed if isinstance(seed, int) else 0
    share, count = _held_out(made)
    skip_broken = skipped_broken(bundle)
    splits = load_splits(
        data,
        held_out_share=share,
        held_out_images=count,
        seed=seed,
        resolution=space.resolution(space.largest),
        preprocess=bundle.preprocess,
        skip_broken=skip_broken,
    )
    _check_labels(bundle.labels, splits, path, data)
    here, its = in_words(splits), words_of(bundle)
    if its is not None and not is_same(its, here, counts=not skip_broken):
        _refuse(data, here, path, its)
    net = build_net(space)
    net.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in bundle.weights.items()})
    preprocess = bundle.preprocess
    shares = SHARED in bundle.statistics
    return with_images(
        net,
        bundle.answer,
        splits,
        seed=seed,
        mean=preprocess.mean,
        std=preprocess.std,
        version=bundle.version,
        frozen=FrozenStatistics(unpack_shared(space, bundle.statistics)) if shares else None,
    )


def _refuse_few(path: Path, archs: int) -> None:
    if archs:
        raise ValueError(
            f"{path} trained {archs} of the archs of its space alone, so that a search finds "
            "nothing; give a run or a bundle that trained them all"
        )


def _held_out(made: Mapping[str, object]) -> tuple[float, int]:
    """Share and number of held-out images, by which a bundle's run cut them off.

    A bundle from before 2026-12 tells how many they were. Where classes are unequal and its run
    cut by a share, some of them are others.
    """
    told = made.get("held_out")
    if isinstance(told, Mapping):
        share, images = told.get("share"), told.get("images")
        if isinstance(share, float) and isinstance(images, int):
            return share, images
    count = made.get("val_images")
    return HELD_OUT_SHARE, count if isinstance(count, int) else 0


def _version_of(weights: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        found.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def _check_labels(labels: Sequence[str], splits: Splits, path: Path, data: str) -> None:
    """Raises ValueError unless the data numbers the same classes in the same way."""
    for number, (here, its) in enumerate(zip_longest(splits.labels, labels)):
        if here != its:
            told = f"{len(splits.labels)} classes with {here!r} at place {number}"
            _refuse(data, told, path, f"{len(labels)} with {its!r} there")


def _refuse(data: str, here: str, path: Path, its: str) -> NoReturn:
    raise ValueError(
        f"{data} has {here}, and {path} was trained on {its}; give the data that it was trained on"
    )


def with_images(
    net: AbstractNet,
    answer: Callable[[float], Arch],
    splits: Splits,
    *,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    version: str,
    frozen: FrozenStatistics | None = None,
) -> Supernet:
    """A supernet and its images. Calibration images are not changed at random."""
    size = min(CALIBRATION_BATCH, len(splits.train))
    train = Batches(splits.train, size, seed=seed, mean=mean, std=std, channels_last=True)
    count = min(CALIBRATION_BATCHES, len(train))
    return Supernet(
        net,
        answer,
        [train.batch(0, index).images for index in range(count)],
        evaluation_batches(splits.held_out, mean, std, "cpu"),
        evaluation_batches(splits.test, mean, std, "cpu"),
        frozen,
        version,
    )
