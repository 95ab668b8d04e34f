"""attentivenas: the search space of AttentiveNAS (arXiv 2011.09011), appendix D of the paper.

======  ======  ===================  =====  ======  =======  ===
stage   stride  width                depth  kernel  expand   SE
======  ======  ===================  =====  ======  =======  ===
stem    2       16, 24               1      3       -        -
0       1       16, 24               1, 2   3, 5    1        no
1       2       24, 32               3-5    3, 5    4, 5, 6  no
2       2       32, 40               3-6    3, 5    4, 5, 6  yes
3       2       64, 72               3-6    3, 5    4, 5, 6  no
4       1       112, 120, 128        3-8    3, 5    4, 5, 6  yes
5       2       192, 200, 208, 216   3-8    3, 5    6        yes
6       1       216, 224             1, 2   3, 5    6        yes
head    -       1792, 1984           1      1       6        -
======  ======  ===================  =====  ======  =======  ===

Images of 192, 224, 256 or 288 pixels; swish. The numbers are those of the published configuration
(facebookresearch/AttentiveNAS, ``configs``); width, depth, kernel and expansion are each one choice
a stage. Squeeze-and-excitation: a quarter of the expanded width, by 8; ReLU and h-sigmoid. Every
block has a shortcut; a stage's first block pools where it strides and has a 1x1 convolution,
without BatchNorm, where the widths of this arch differ. The head expands to 6 x the last width,
pools, and convolves once more without BatchNorm or bias.

FLOPs are 203.390 M (A0, the smallest) to 1,939.336 M, as the public code counts them. Parameters
are those that an arch needs, so fewer than the public code stores: that one keeps a 1x1 shortcut
convolution, mostly unused, in every block (A0: 8.954 M here, 9.065 M there).
"""

from __future__ import annotations

from models.space.search_space import SearchSpace
from models.spaces.mbconv import Squeeze, Stage, make_divisible, mbconv_space


def squeezed(inside: int, middle: int) -> int:
    """Hidden width of squeeze-and-excitation: a quarter of the channels that it scales, by 8."""
    return make_divisible(middle // 4)


def attentivenas(num_classes: int = 1000) -> SearchSpace:
    """The space of AttentiveNAS and AlphaNet."""
    return mbconv_space(
        "attentivenas",
        resolution=(192, 224, 256, 288),
        stem=(16, 24),
        stem_stride=2,
        stages=(
            Stage(1, (16, 24), (1, 2), (3, 5), (1,)),
            Stage(2, (24, 32), (3, 4, 5), (3, 5), (4, 5, 6)),
            Stage(2, (32, 40), (3, 4, 5, 6), (3, 5), (4, 5, 6), squeeze=True),
            Stage(2, (64, 72), (3, 4, 5, 6), (3, 5), (4, 5, 6)),
            Stage(1, (112, 120, 128), (3, 4, 5, 6, 7, 8), (3, 5), (4, 5, 6), squeeze=True),
            Stage(2, (192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (3, 5), (6,), squeeze=True),
            Stage(1, (216, 224), (1, 2), (3, 5), (6,), squeeze=True),
        ),
        head=(1792, 1984),
        num_classes=num_classes,
        activation="silu",
        squeeze=Squeeze(squeezed, "relu", "hardsigmoid"),
        projected_shortcuts=True,
        head_expand=6,
    )
