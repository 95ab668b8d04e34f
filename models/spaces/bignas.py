"""bignas: the search space of BigNAS (arXiv 2003.11142), the paper's CNN space.

======  ======  ===================  =====  ======  ======
stage   stride  width                depth  kernel  expand
======  ======  ===================  =====  ======  ======
stem    2       32, 40               1      3       -
0       1       16, 24               1, 2   3       1
1       2       24, 32               2, 3   3       6
2       2       40, 48               2, 3   3, 5    6
3       2       80, 88               2-4    3, 5    6
4       1       112, 120, 128        2-6    3, 5    6
5       2       192, 200, 208, 216   2-6    3, 5    6
6       1       320, 352             1, 2   3, 5    6
head    -       1280, 1408           1      1       -
======  ======  ===================  =====  ======  ======

Images of 192, 224, 288 or 320 pixels; swish; squeeze-and-excitation in every block. No official
code is public; the ranges are those of xfey/pytorch-BigNAS, and agree with the BigNAS paper's.
Where sources conflict:

- *Width inside squeeze-and-excitation*: a quarter of the channels that enter the block, as in
  EfficientNet, whose B0 is then an arch of the space. The public reimplementation takes a quarter
  of the expanded channels; its smallest subnet has 5.5 M parameters, and BigNAS-S has 4.5 M.
- *Shortcuts*: none on a stage's first block, as the paper says; the reimplementation adds a 1x1
  convolution there.
- *Kernels*: chosen block by block, as the paper says; the reimplementation chooses by stage.
"""

from __future__ import annotations

from models.space.search_space import SearchSpace
from models.spaces.mbconv import Squeeze, Stage, mbconv_space


def squeezed(inside: int, middle: int) -> int:
    """Hidden width of squeeze-and-excitation: a quarter of the channels that enter the block."""
    return max(1, inside // 4)


def bignas(num_classes: int = 1000) -> SearchSpace:
    """The space of BigNAS, EfficientNet-B0 inside it."""
    return mbconv_space(
        "bignas",
        resolution=(192, 224, 288, 320),
        stem=(32, 40),
        stem_stride=2,
        stages=(
            Stage(1, (16, 24), (1, 2), (3,), (1,), squeeze=True),
            Stage(2, (24, 32), (2, 3), (3,), (6,), squeeze=True),
            Stage(2, (40, 48), (2, 3), (3, 5), (6,), squeeze=True),
            Stage(2, (80, 88), (2, 3, 4), (3, 5), (6,), squeeze=True),
            Stage(1, (112, 120, 128), (2, 3, 4, 5, 6), (3, 5), (6,), squeeze=True),
            Stage(2, (192, 200, 208, 216), (2, 3, 4, 5, 6), (3, 5), (6,), squeeze=True),
            Stage(1, (320, 352), (1, 2), (3, 5), (6,), squeeze=True),
        ),
        head=(1280, 1408),
        num_classes=num_classes,
        activation="silu",
        squeeze=Squeeze(squeezed, "silu", "sigmoid"),
        kernel_per_block=True,
    )
