"""How large an experiment is: the recipe that all its runs start from."""

from __future__ import annotations

from trainer.recipes.cifar10_cnn import cifar10_cnn
from trainer.recipes.digits import digits
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import Augment, GeneratorOptions, Optimizer, SamplerOptions


def digits_scale() -> Recipe:
    """What CI runs: it shows that the experiment works, and nothing else."""
    return digits().replace(epochs=2, threads=1, tensorboard=False)


def nano_scale() -> Recipe:
    """nano-cnn on CIFAR-10 at 16 pixels: about a minute a run on one core."""
    return Recipe(
        name="nano",
        space="nano-cnn",
        data="cifar10",
        resolution=16,
        epochs=4,
        batch_size=128,
        sampler="uniform-budget",
        sampler_options=SamplerOptions(groups=8),
        optimizer=Optimizer(learning_rate=0.1, weight_decay=2e-4),
        generator=GeneratorOptions(pretrain_steps=1000),
        augment=Augment(padding=2),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        shift_every=25,
        evaluate_every=0,
        threads=1,
        tensorboard=False,
    )


def cnn_scale() -> Recipe:
    """cifar-cnn on CIFAR-10: hours a run on one core; time follows FLOPs here."""
    recipe = cifar10_cnn().replace(name="cifar-cnn", sampler="uniform-budget", evaluate_every=0)
    return recipe.replace(tensorboard=False)


def vit_scale() -> Recipe:
    """cifar-vit on CIFAR-10: hours a run on one core."""
    optimizer = Optimizer(name="adamw", learning_rate=1e-3, weight_decay=0.05)
    return cnn_scale().replace(name="cifar-vit", space="cifar-vit", optimizer=optimizer)


SCALES = {"digits": digits_scale, "nano": nano_scale, "cnn": cnn_scale, "vit": vit_scale}
"""Name -> the recipe."""
