"""cifar10-vit: a small transformer supernet, trained on one core."""

from __future__ import annotations

from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import (
    Augment,
    Distillation,
    GeneratorOptions,
    Optimizer,
    SamplerOptions,
)


def cifar10_vit() -> Recipe:
    """CIFAR-10 on one CPU core: transformers of 9.8 to 37.5 MFLOPs, taught by the CNN of the zoo.

    Command: ``python -m trainer.run --recipe cifar10-vit --data PATH``, in a checkout
    Hardware, time: one core of an AMD EPYC (Zen 3), 126 minutes.
    Reached: test accuracy 76.4 % at 9.8 MFLOPs to 77.8 % at 37.5 (docs/experiments/cifar10-vit.md),
    far below the CNN's. It is ``models/zoo/cifar10-vit``.
    """
    return Recipe(
        name="cifar10-vit",
        bundle_name="cifar10-vit",
        space="cifar-vit",
        data="cifar10",
        resolution=32,
        epochs=48,
        batch_size=128,
        sampler="static-tilt",
        sampler_options=SamplerOptions(groups=8, tilt=(-4.0, 0.0)),
        optimizer=Optimizer(name="adamw", learning_rate=1.5e-3, weight_decay=0.05, clip_norm=1.0),
        distillation=Distillation(
            teacher="models/zoo/cifar10-cnn", weight=0.7, temperature=2.0, views=8
        ),
        generator=GeneratorOptions(
            resource_batch=32, masked_every=64, pretrain_steps=1000, served_share=0.8
        ),
        augment=Augment(alternate_flips=True),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        evaluate_every=10,
        answer_budgets=64,
        calibration_batches=1,  # there is no BatchNorm
        threads=1,
    )
