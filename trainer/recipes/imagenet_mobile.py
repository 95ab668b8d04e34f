"""imagenet-mobile: smaller answers of EfficientNet-Lite0 learn what the whole network says."""

from __future__ import annotations

from trainer.recipes.photos import LITE_MEAN, LITE_STD
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import (
    Augment,
    Distillation,
    GeneratorOptions,
    Optimizer,
    SamplerOptions,
)

SUBNETS = (
    (96, 1, 2, 2, 2, 3),
    (96, 2, 2, 3, 3, 4),
    (128, 1, 2, 2, 1, 2),
    (128, 2, 1, 2, 2, 2),
    (128, 2, 2, 2, 1, 3),
    (128, 2, 1, 3, 2, 3),
    (128, 2, 2, 2, 2, 4),
    (128, 2, 2, 3, 3, 4),
    (160, 2, 1, 2, 2, 3),
    (160, 2, 2, 2, 2, 4),
    (160, 2, 2, 3, 3, 4),
    (192, 2, 2, 2, 2, 4),
    (224, 2, 2, 3, 3, 4),
)
"""Resolution, and depths of stages 1 to 5, by rising FLOPs: most are where answers are least near
the whole network. The last is that network: it must not move."""


def imagenet_mobile() -> Recipe:
    """ImageNet's classes, by what EfficientNet-Lite0 says of photos without labels.

    Command: ``python -m trainer.run --recipe imagenet-mobile --data PHOTOS``. The teacher's bundle
    and the photos are made by commands of docs/experiments/imagenet-mobile.md, which has the
    hardware, the time and the result: 14 minutes on one core; a quarter of the way that the
    weights went brings every answer below 200 MFLOPs nearer to the whole network.

    BatchNorm keeps the network's statistics, and the teacher sees the same part of a photo at 224
    pixels. A step trains one of ``SUBNETS``.
    """
    archs = tuple({"resolution": side, "depth": [1, *each, 1]} for side, *each in SUBNETS)
    return Recipe(
        name="imagenet-mobile",
        space="mobile",
        data="photos-to-teach",
        start="efficientnet-lite0",
        statistics="start",
        resolution=224,
        epochs=2,
        batch_size=32,
        sampler="uniform-budget",
        sampler_options=SamplerOptions(archs=archs),
        distillation=Distillation(teacher="runs/efficientnet-lite0"),
        optimizer=Optimizer(learning_rate=0.002, weight_decay=0.0, clip_norm=5.0),
        generator=GeneratorOptions(masked_every=1_000_000),
        augment=Augment(padding=0, crop_area=0.7),
        mean=LITE_MEAN,
        std=LITE_STD,
        crop_ratio=0.875,
        ema=0.99,
        half=True,
        held_out_images=100,
        evaluate_every=0,
    )
