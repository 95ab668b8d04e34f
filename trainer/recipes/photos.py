"""photos: a folder of photos of your own, from pretrained weights."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import (
    Augment,
    Distillation,
    GeneratorOptions,
    Optimizer,
    SamplerOptions,
)

LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Of EfficientNet-Lite's images."""

FEW_A_CLASS = 100
"""Photos of the smallest class below which photos are changed more."""
FEW = 1_000
"""Photos of all classes below which more of them are held out."""
LEAST_HELD_OUT, MOST_HELD_OUT = 30, 5_000


def photos() -> Recipe:
    """Your own photos, a folder a class, from EfficientNet-Lite0.

    Command: ``python -m trainer.run --recipe photos --data FOLDER --hours 1``
    Hardware, time, result: docs/your-photos.md.

    BatchNorm keeps the pretrained network's statistics. Subnets are drawn at uniform budgets, learn
    half from the labels and half from the largest subnet, and differ in resolution and depth. Both
    were chosen by what the start bears without training (docs/experiments).
    """
    return Recipe(
        name="photos",
        space="mobile",
        data="",
        start="efficientnet-lite0",
        statistics="start",
        resolution=224,
        epochs=16,
        batch_size=32,
        sampler="uniform-budget",
        sampler_options=SamplerOptions(groups=8),
        distillation=Distillation(teacher="largest", weight=0.5, precision="bf16"),
        optimizer=Optimizer(learning_rate=0.01, weight_decay=1e-4, clip_norm=5.0),
        generator=GeneratorOptions(pretrain_steps=500, masked_every=1_000_000),
        augment=Augment(padding=0, crop_area=0.35),
        mean=LITE_MEAN,
        std=LITE_STD,
        ema=0.99,
        half=True,
        evaluate_every=0,
        answer_budgets=24,
        answers_page=True,
    )


def fitted(recipe: Recipe, counts: Sequence[int], spare: int) -> Recipe:
    """The recipe for a data set. counts: training photos of each class.

    spare: how many of them can be held out: all but those that become the test images, and one of
    each class.

    Of few photos a larger part is held out, so that decisions have something to go by; of many
    classes with few photos each, all but a tenth is needed to learn from. Photos of small classes
    are cropped harder. Batches are at most a twentieth of the photos. Raises ValueError for so few
    that they cannot tell anything.
    """
    total, small = sum(counts), min(counts, default=0) < FEW_A_CLASS
    share = 0.2 if total < FEW else 0.1
    held_out = round(share * total)
    few = 0.8 * held_out < LEAST_HELD_OUT  # a fifth of all may become the test images
    if spare < LEAST_HELD_OUT:
        raise ValueError(
            f"{total} photos of {len(counts)} classes are too few: {LEAST_HELD_OUT} must be held "
            f"out to decide by, {max(spare, 0)} can be; "
            f"bring {2 * LEAST_HELD_OUT + 3 * len(counts)} or more"
        )
    return recipe.replace(
        held_out_share=share,
        held_out_images=LEAST_HELD_OUT if few else MOST_HELD_OUT * (held_out > MOST_HELD_OUT),
        batch_size=max(min(recipe.batch_size, total // 20), 2),
        augment=recipe.augment.replace(crop_area=0.25 if small else 0.35),
        optimizer=recipe.optimizer.replace(label_smoothing=0.1 if small else 0.0),
    )
