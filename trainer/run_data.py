"""RunData: the images of a run, cut into what each part of training asks for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainer.batches import Batches
from trainer.evaluate import calibration_images, evaluation_batches
from trainer.recipe import Recipe
from trainer.splits import LabelledImages, Splits


@dataclass(frozen=True)
class RunData:
    """Batches for each use.

    train: what the weights learn from. steer: held-out images that steer the distribution.
    decisions: the same images in their order, for every decision. calibration: training images on
    which BatchNorm statistics are measured.
    """

    train: Batches
    steer: Batches
    decisions: Batches
    calibration: list[Tensor]


def run_data(recipe: Recipe, splits: Splits) -> RunData:
    """The batches of a run. Raises ValueError when there are too few images for one."""

    def batches(images: LabelledImages, *, train: bool) -> Batches:
        return Batches(
            images,
            min(recipe.batch_size, len(images)),
            seed=recipe.seed,
            mean=recipe.mean,
            std=recipe.std,
            augment=recipe.augment if train else None,
            channels_last=True,
        )

    train = batches(splits.train, train=True)
    return RunData(
        train=train,
        steer=batches(splits.steer, train=False),
        decisions=evaluation_batches(splits.steer, recipe.mean, recipe.std),
        calibration=calibration_images(train, recipe.calibration_batches),
    )
