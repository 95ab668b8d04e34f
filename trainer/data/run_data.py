"""RunData: the images of a run, cut into what each part of training asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from models.images.preprocess import Preprocess
from models.interval import interval
from models.spaces import get_space
from trainer.data.batches import Batches
from trainer.data.reading import load_splits
from trainer.data.sources import Source
from trainer.data.splits import AbstractSplit, Splits
from trainer.intervals import LEAST_IMAGES
from trainer.ranks import ALONE, Ranks
from trainer.recipes.recipe import Recipe

EVALUATION_BATCH = 500
EVALUATION_PIXELS = EVALUATION_BATCH * 64 * 64
"""At most so many in a batch: of large images few, whose maps then stay in a processor's cache."""


@dataclass(frozen=True)
class RunData:
    """Batches for each use.

    train: what the weights learn from. held_out: images that steer the distribution. Of both
    a rank has its own images. decisions: the held-out images in their order, for every decision.
    calibration: training images on which BatchNorm statistics are measured, on every rank the same;
    empty where none are.
    left_out: broken images, found before training.
    """

    train: Batches
    held_out: Batches
    decisions: Batches
    calibration: list[Tensor]
    left_out: tuple[str, ...]

    @property
    def broken(self) -> list[str]:
        """Images that were skipped so far, each with its reason."""
        found = dict.fromkeys(self.left_out)
        for batches in (self.train, self.held_out, self.decisions):
            found |= batches.broken
        return list(found)


def read_splits(recipe: Recipe) -> Splits:
    """The recipe's data set, split as it says.

    Raises ValueError as ``load_splits`` does, and where the held-out images are too few to decide
    anything by them.
    """
    splits = load_splits(
        recipe.data,
        held_out_share=recipe.held_out_share,
        seed=recipe.seed,
        resolution=recipe.resolution,
        held_out_images=recipe.held_out_images,
        in_memory=recipe.data_in_memory,
        random_crops=recipe.augment.crop_area > 0,
        skip_broken=recipe.skip_broken,
        preprocess=preprocess_of(recipe),
    )
    count = len(splits.held_out)
    if count < LEAST_IMAGES:
        low, high = interval(0.5, count)
        raise ValueError(
            f"{count} held-out images are too few to decide by: an accuracy of 50 % on them may be "
            f"{low:.0%} to {high:.0%}. It takes {LEAST_IMAGES}: set held_out_images={LEAST_IMAGES} "
            f"or more (there are {len(splits.train) + count} to train on and hold out), or bring "
            "more images"
        )
    return splits


def refuse_parts(source: Source, purpose: str) -> None:
    """Raises ValueError for a data set with a test part: which of its images trained is not known.

    purpose: what the images are to do.
    """
    if source.test is not None:
        raise ValueError(
            f"{source.name} has a training and a test part: name the run whose held-out images "
            f"{purpose} (--run), or give images that neither train nor test"
        )


def preprocess_of(recipe: Recipe) -> Preprocess:
    """How images become what subnets read, in training and in the bundle."""
    return Preprocess(recipe.mean, recipe.std, crop_ratio=recipe.crop_ratio)


def batches_of(
    recipe: Recipe, splits: Splits, images: AbstractSplit, ranks: Ranks = ALONE, *, train: bool
) -> Batches:
    """Batches of some of a run's images. train: changed at random, as what weights learn from."""
    return Batches(
        images,
        min(recipe.batch_size, len(images)) // ranks.world_size,
        seed=recipe.seed,
        mean=recipe.mean,
        std=recipe.std,
        augment=recipe.augment if train else None,
        classes=len(splits.labels),
        channels_last=True,
        device=recipe.device,
        workers=recipe.data_workers,
        window=recipe.shuffle_window,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def evaluation_batches(
    data: AbstractSplit, mean: Sequence[float], std: Sequence[float], device: str
) -> Batches:
    """A split in its own order, without augmentation, on a device."""
    return Batches(
        data,
        min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // data.resolution**2), len(data)),
        seed=0,
        mean=mean,
        std=std,
        shuffle=False,
        drop_last=False,
        channels_last=True,
        device=device,
    )


def calibration_count(recipe: Recipe) -> int:
    """Batches of training images on which archs are calibrated: none where nothing asks for it."""
    keeps = recipe.statistics == "start" and recipe.start
    return recipe.calibration_batches if get_space(recipe.space).norms and not keeps else 0


def calibration_images(batches: Batches, count: int) -> list[Tensor]:
    """The first batches of epoch 0, cached: every arch is calibrated on the same images."""
    # Not on the GPU: they are many, and wait there most of the time.
    return [batch.images.cpu() for batch in islice(batches.epoch(0, mixed=False), count)]


def run_data(recipe: Recipe, splits: Splits, ranks: Ranks = ALONE) -> RunData:
    """The batches of a run. Raises ValueError when there are too few images for one."""
    whole = batches_of(recipe, splits, splits.train, train=True)
    return RunData(
        train=batches_of(recipe, splits, splits.train, ranks, train=True),
        held_out=batches_of(recipe, splits, splits.held_out, ranks, train=False),
        decisions=evaluation_batches(splits.held_out, recipe.mean, recipe.std, recipe.device),
        calibration=calibration_images(whole, calibration_count(recipe)),
        left_out=(*splits.broken, *whole.broken),
    )
