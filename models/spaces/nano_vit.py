"""nano-vit: the smallest space with every kind of elasticity the family has, for tests and digits.

16x16 images in patches of 4, 0.07-0.57 MFLOPs.
"""

from __future__ import annotations

from models.space.search_space import SearchSpace
from models.spaces.vit import vit_space


def nano_vit(num_classes: int = 10) -> SearchSpace:
    """Widths and heads are small, but there are as many kinds of choices as in ``vit-tiny``."""
    return vit_space(
        "nano-vit",
        image=16,
        patch=4,
        embed_dim=(16, 24, 32),
        depth=(2, 3, 4),
        num_heads=(1, 2, 3),
        mlp_ratio=(1.5, 2),
        head_dim=8,
        num_classes=num_classes,
    )
