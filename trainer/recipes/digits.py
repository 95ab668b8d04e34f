"""digits: the demo, on images that come with scikit-learn."""

from __future__ import annotations

from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import Augment, GeneratorOptions, Optimizer, SamplerOptions


def digits() -> Recipe:
    """The demo: scikit-learn's 1,797 handwritten digits, in a minute or two on two cores.

    Command: ``python -m trainer.run``

    It shows the paper's method, so it draws with the paper's ``shift``.
    """
    return Recipe(
        name="digits",
        space="nano-cnn",
        data="digits",
        resolution=16,
        epochs=60,
        batch_size=64,
        sampler="shift",
        sampler_options=SamplerOptions(groups=6, learning_rate=0.05),
        optimizer=Optimizer(learning_rate=0.1, weight_decay=1e-4),
        generator=GeneratorOptions(pretrain_steps=1000),
        augment=Augment(padding=2, border="zero", flip=False),
        mean=(0.3, 0.3, 0.3),
        std=(0.35, 0.35, 0.35),
        shift_every=20,
        evaluate_every=10,
    )
