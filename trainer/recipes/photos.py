"""photos: a folder of photos of your own, from pretrained weights."""

from __future__ import annotations

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


def photos() -> Recipe:
    """Your own photos, a folder a class, from EfficientNet-Lite0.

    Command: ``python -m trainer.run --recipe photos --data FOLDER``
    """
    return Recipe(
        name="photos",
        space="mobile",
        data="",
        start="efficientnet-lite0",
        statistics="start",
        resolution=224,
        epochs=10,
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
        dominated_by=0.0,
        evaluate_every=0,
        answer_budgets=24,
        threads=1,
    )
