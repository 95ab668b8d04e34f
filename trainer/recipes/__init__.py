"""The recipes, by name: one function for each training run worth repeating.

A recipe's docstring says its command, the hardware, how long it took and what it reached. A new one
is a function in a file of its family in this folder, and a line here.
"""

from __future__ import annotations

RECIPES: dict[str, str] = {
    "digits": "trainer.recipes.digits:digits",
    "photos": "trainer.recipes.photos:photos",
    "imagenet-mobile": "trainer.recipes.imagenet_mobile:imagenet_mobile",
    "cifar10-cnn": "trainer.recipes.cifar10_cnn:cifar10_cnn",
    "cifar10-vit": "trainer.recipes.cifar10_vit:cifar10_vit",
    "vit-tiny": "trainer.recipes.vit:vit_tiny",
    "vit-small": "trainer.recipes.vit:vit_small",
    "vit-base": "trainer.recipes.vit:vit_base",
    "bignas": "trainer.recipes.cnn:bignas",
    "attentivenas": "trainer.recipes.cnn:attentivenas",
}
"""Name -> ``module:function``; the function takes nothing and gives the recipe."""

FITTED: dict[str, str] = {"photos": "trainer.recipes.photos:fitted"}
"""Of recipes that look at the data first: ``module:function``, which takes the recipe and
the number of training images of each class, and gives the recipe for them."""
