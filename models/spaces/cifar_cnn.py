"""cifar-cnn: 1-15 MFLOPs at 32x32, laid out so that it trains on a CPU in an hour.

========  ======  ===============  =====  ======  ==============  =========
stage     stride  width            depth  kernel  expand          operator
========  ======  ===============  =====  ======  ==============  =========
stem      1       12, 16           1      3       -               conv
0         2       16, 24, 32       1, 2   3       1, 2            fused
1         2       32, 48, 64       1-3    3       1, 2            fused
2         2       64, 96, 128      1-3    3, 5    3, 4, 6         MBConv
head      -       256              1      1       -               conv
========  ======  ===============  =====  ======  ==============  =========

Ours, not the paper's: its CNN spaces start at 200 MFLOPs.
"""

from __future__ import annotations

from models.space import SearchSpace
from models.spaces.mbconv import Stage, mbconv_space


def cifar_cnn(num_classes: int = 10) -> SearchSpace:
    """The space of the bundle in ``models/zoo``."""
    return mbconv_space(
        "cifar-cnn",
        resolution=(32,),
        stem=(12, 16),
        stem_stride=1,
        stages=(
            Stage(2, (16, 24, 32), (1, 2), (3,), (1, 2), fused=True),
            Stage(2, (32, 48, 64), (1, 2, 3), (3,), (1, 2), fused=True),
            Stage(2, (64, 96, 128), (1, 2, 3), (3, 5), (3, 4, 6)),
        ),
        head=(256,),
        num_classes=num_classes,
        activation="relu",
    )
