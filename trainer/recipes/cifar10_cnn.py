"""cifar10-cnn: a small convolutional supernet, trained on one core."""

from __future__ import annotations

from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import GeneratorOptions, Optimizer, SamplerOptions


def cifar10_cnn() -> Recipe:
    """CIFAR-10 on one CPU core: nearly what trained the bundle in ``models/zoo/cifar10-cnn``.

    Command: ``python -m trainer.run --recipe cifar10-cnn --data PATH``
    Hardware, time: one core of an AMD EPYC (Zen 5) shared with other work, 94 minutes.
    Reached: test accuracy 80.4 % at 3.25 MFLOPs to 87.0 % at 14.86 (targets 82 and 88 % missed).

    That was at commit 72d3db2, with ``sampler=shift-direct`` (docs/runs/cifar10-cnn/recipe.json).
    No learned sampler was shown to help since (docs/experiments/samplers.md), so budgets are
    uniform here. The generator has changed too: its last decisions know what is left of the budget,
    noise is drawn for all decisions at once, and L_RC needs half of the budgets. So a run of
    today's code is not that run, and was not made.
    """
    return Recipe(
        name="cifar10-cnn",
        space="cifar-cnn",
        data="cifar10",
        resolution=32,
        epochs=142,
        batch_size=128,
        sampler="uniform-budget",
        sampler_options=SamplerOptions(groups=12, learning_rate=0.01, floor=0.5),
        optimizer=Optimizer(learning_rate=0.15, weight_decay=2e-4, label_smoothing=0.05),
        generator=GeneratorOptions(
            resource_batch=32, masked_every=8, pretrain_steps=1000, served_share=0.8
        ),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        shift_every=100,
        evaluate_every=10,
        answer_budgets=256,
        threads=1,
    )
