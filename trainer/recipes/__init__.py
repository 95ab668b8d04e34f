"""The recipes, by name: one function for each training run worth repeating.

A recipe's docstring says its command, the hardware, how long it took and what it reached. A new one
is a function in a file of its family in this folder, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.recipes.cifar10_cnn import cifar10_cnn
from trainer.recipes.cnn import attentivenas, bignas
from trainer.recipes.digits import digits
from trainer.recipes.recipe import Recipe
from trainer.recipes.vit import vit_base, vit_small, vit_tiny

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "cifar10-cnn": cifar10_cnn,
    "vit-tiny": vit_tiny,
    "vit-small": vit_small,
    "vit-base": vit_base,
    "bignas": bignas,
    "attentivenas": attentivenas,
}
"""Name -> function."""
