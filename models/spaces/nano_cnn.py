"""nano-cnn: the smallest space with every kind of elasticity the family has, for tests and digits.

Resolutions 12 and 16; a fused stage and an MBConv stage, elastic in width, depth, kernel and
expansion. 0.1-1 MFLOPs.
"""

from __future__ import annotations

from models.space.search_space import SearchSpace
from models.spaces.mbconv import Stage, mbconv_space


def nano_cnn(num_classes: int = 10) -> SearchSpace:
    """Trains on scikit-learn's digits in a minute or two on one core."""
    return mbconv_space(
        "nano-cnn",
        resolution=(12, 16),
        stem=(8, 16),
        stem_stride=1,
        stages=(
            Stage(2, (8, 16), (1, 2), (3, 5), (1, 2), fused=True),
            Stage(2, (16, 24, 32), (1, 2, 3), (3, 5), (2, 3)),
        ),
        head=(48, 64),
        num_classes=num_classes,
        activation="relu",
    )
