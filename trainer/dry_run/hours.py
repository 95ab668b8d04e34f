"""How many epochs fit into some hours, by trying some steps."""

from __future__ import annotations

import sys

from trainer.dry_run.measure import dry_run
from trainer.recipes.recipe import Recipe

MOST_EPOCHS = 60
"""More of the same photos teaches a pretrained network little."""
STEPS = 8
"""From which the time of an epoch is told."""
OF_TRAINING = 0.72
"""Part of the hours: the rest is for the start, decoding, measuring what will be served, and a
machine that others use as well, where steps take a fifth longer than when they were tried."""


def within_hours(recipe: Recipe, hours: float) -> tuple[Recipe, str]:
    """The recipe that ends by the clock, or after MOST_EPOCHS, and a line that says so.

    Raises ValueError if not one epoch fits.
    """
    print("trying some steps, to know what an epoch takes", file=sys.stderr)
    epoch_s = dry_run(recipe, steps=STEPS).epoch_s
    epochs = int(hours * 3600 * OF_TRAINING / epoch_s)
    if epochs < 1:
        needed = epoch_s / OF_TRAINING / 3600
        raise ValueError(
            f"--hours is {hours:g}, and one epoch takes {epoch_s / 60:.0f} minutes here: give at "
            f"least {needed:.1f}, or fewer photos"
        )
    each = f"epochs of about {epoch_s / 60:.1f} minutes"
    most = recipe.most_epochs or MOST_EPOCHS
    timed = recipe.replace(
        epochs=min(epochs, most), most_epochs=most, training_hours=hours * OF_TRAINING
    )
    clock = f"after {60 * hours * OF_TRAINING:.0f} minutes (--hours {hours:g})"
    if epochs > most:
        return timed, f"training ends with {most} {each}, which are enough, or {clock}"
    return timed, f"training ends {clock}, in about {epochs} {each}"
