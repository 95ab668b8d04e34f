"""The search spaces, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from functools import cache

from models.lookup import look_up
from models.space.search_space import SearchSpace

SPACES: dict[str, str] = {
    "attentivenas": "models.spaces.attentivenas:attentivenas",
    "bignas": "models.spaces.bignas:bignas",
    "cifar-cnn": "models.spaces.cifar_cnn:cifar_cnn",
    "cifar-vit": "models.spaces.cifar_vit:cifar_vit",
    "efficientnet-lite0": "models.spaces.efficientnet_lite:efficientnet_lite0",
    "mobile": "models.spaces.efficientnet_lite:mobile",
    "nano-cnn": "models.spaces.nano_cnn:nano_cnn",
    "nano-vit": "models.spaces.nano_vit:nano_vit",
    "vit-base": "models.spaces.autoformer:vit_base",
    "vit-base-autoformer": "models.spaces.autoformer:vit_base_autoformer",
    "vit-base-rpe": "models.spaces.autoformer:vit_base_rpe",
    "vit-small": "models.spaces.autoformer:vit_small",
    "vit-small-autoformer": "models.spaces.autoformer:vit_small_autoformer",
    "vit-small-rpe": "models.spaces.autoformer:vit_small_rpe",
    "vit-tiny": "models.spaces.autoformer:vit_tiny",
    "vit-tiny-autoformer": "models.spaces.autoformer:vit_tiny_autoformer",
    "vit-tiny-rpe": "models.spaces.autoformer:vit_tiny_rpe",
}
"""Name -> ``module:function``; the function takes the number of classes and gives the space."""


@cache
def get_space(name: str, num_classes: int | None = None) -> SearchSpace:
    """The space called ``name``, with its own number of classes or the given one.

    Raises ValueError naming the spaces there are.
    """
    build = look_up(SPACES, name, "search space")
    space = build() if num_classes is None else build(num_classes=num_classes)
    assert isinstance(space, SearchSpace)
    return space
