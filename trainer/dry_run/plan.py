"""Plan: how often what happens in a run, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from models.spaces import get_space
from trainer.data.run_data import read_splits
from trainer.engine.horizon import horizon_of
from trainer.recipes.recipe import Recipe
from trainer.samplers import build_sampler

KNOWN_DATA = {"imagenet": (1_281_167, 1000), "cifar10": (50_000, 10)}
"""Training images and classes of data sets that need not be there; others are read."""


@dataclass(frozen=True)
class Plan:
    """How often what happens in a run. ``updates``: of the distribution B, after the warm-up.

    labels: names of the classes; None where the data is known without being read.
    """

    train_images: int
    held_out_images: int
    classes: int
    labels: tuple[str, ...] | None
    steps_per_epoch: int
    steps: int
    masked_steps: int
    warm_up_steps: int
    updates: int

    @property
    def epochs(self) -> float:
        """Not those of the recipe where the run ends by its compute."""
        return self.steps / self.steps_per_epoch


def plan_of(recipe: Recipe) -> Plan:
    """Count the steps of a run. Raises ValueError for data that cannot be read or split so."""
    if recipe.data in KNOWN_DATA:
        images, classes = KNOWN_DATA[recipe.data]
        held_out = recipe.held_out_images or round(recipe.held_out_share * images)
        if held_out > images - classes:
            raise ValueError(
                f"held_out_images is {held_out}, of {images} training images: give fewer, or 0 and "
                "a held_out_share"
            )
        images -= held_out
        labels = None
    else:
        splits = read_splits(recipe)
        images, held_out, labels = len(splits.train), len(splits.held_out), splits.labels
        classes = len(labels)
    steps_per_epoch = images // min(recipe.batch_size, images)
    space = get_space(recipe.space, classes)
    sampler = build_sampler(recipe.sampler, space, recipe.sampler_options)
    total = horizon_of(recipe, sampler, steps_per_epoch).steps
    warm_up = round(recipe.warm_up_share * total)
    return Plan(
        train_images=images,
        held_out_images=held_out,
        classes=classes,
        labels=labels,
        steps_per_epoch=steps_per_epoch,
        steps=total,
        masked_steps=-(-total // recipe.generator.masked_every),
        warm_up_steps=warm_up,
        updates=recipe.updates(total) if sampler.learns else 0,
    )
