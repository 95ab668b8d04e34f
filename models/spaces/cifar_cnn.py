"""cifar-cnn: 3.2 to 15 MFLOPs at 32x32, laid out to train in an hour on one core.

========  ======  ===========  =====  ======  =======  ========
stage     stride  width        depth  kernel  expand   operator
========  ======  ===========  =====  ======  =======  ========
stem      1       16           1      3       -        conv
0         2       24, 32       1, 2   3       1        fused
1         2       48, 56, 64   2, 3   3       0.5, 1   fused
2         2       80, 96, 104  2, 3   3, 5    2, 3, 4  MBConv
head      -       192, 256     1      1       -        conv
========  ======  ===========  =====  ======  =======  ========

Ours, not the paper's: its CNN spaces start at 200 MFLOPs. The early stages are fused because a
dense 3x3 convolution trains several times more FLOPs a second on a CPU than a depthwise one.
"""

from __future__ import annotations

from models.space.search_space import SearchSpace
from models.spaces.mbconv import Stage, mbconv_space


def cifar_cnn(num_classes: int = 10) -> SearchSpace:
    """The space of the bundle in ``models/zoo``."""
    return mbconv_space(
        "cifar-cnn",
        resolution=(32,),
        stem=(16,),
        stem_stride=1,
        stages=(
            Stage(2, (24, 32), (1, 2), (3,), (1,), fused=True),
            Stage(2, (48, 56, 64), (2, 3), (3,), (0.5, 1), fused=True),
            Stage(2, (80, 96, 104), (2, 3), (3, 5), (2, 3, 4)),
        ),
        head=(192, 256),
        num_classes=num_classes,
        activation="relu",
    )
