"""efficientnet-lite0, mobile: EfficientNet-Lite0 and its subnets; the largest arch is that network.

======  ======  =====  =====  ======  =======
stage   stride  width  depth  kernel  expand
======  ======  =====  =====  ======  =======
stem    2       32     1      3       -
0       1       16     1      3       1
1       2       24     1, 2   3       3, 4, 6
2       2       40     1, 2   3, 5    3, 4, 6
3       2       80     1-3    3       3, 4, 6
4       1       112    1-3    3, 5    3, 4, 6
5       2       192    1-4    3, 5    3, 4, 6
6       1       320    1      3       3, 4, 6
head    -       1280   1      1       -
======  ======  =====  =====  ======  =======

Images of 96 to 224 pixels in steps of 16; ReLU6, no squeeze-and-excitation, BatchNorm's epsilon
1e-3 (tensorflow/tpu, ``efficientnet/lite``). Every choice is the public network's or smaller, so a
supernet that starts from its weights has nothing new. Widths are fixed: a stage's channels carry
all of its shortcuts, and a network that was trained with all of them does not do without some.

``mobile`` has the same weights and chooses resolution and depth alone: what a pretrained network
bears. Without a third of its expanded channels it answers 4 % of photos as before, without the last
block of each stage 83 % (docs/experiments); so the rest needs a longer training than an hour.

*Padding.* TensorFlow pads a map with an even side by one pixel less before it than after it, where
the stride is 2; torch pads both ends alike. Turned by 180 degrees, one is the other: a network of
TensorFlow is exactly one of torch whose kernels and images are turned. Kernels are turned when
weights are read (``models.converters.efficientnet_lite``), images by the network itself. With an
odd side or a stride of 1 both pad alike. So this holds at every resolution.
"""

from __future__ import annotations

from models.space.search_space import SearchSpace
from models.spaces.mbconv import Stage, mbconv_space

EXPAND = (3, 4, 6)
KERNEL = (3, 5)


def efficientnet_lite0(num_classes: int = 1000) -> SearchSpace:
    """20 to 385 MFLOPs, 2.2 to 4.7 million parameters."""
    return _space("efficientnet-lite0", num_classes, KERNEL, EXPAND)


def mobile(num_classes: int = 1000) -> SearchSpace:
    """31 to 385 MFLOPs, 2.6 to 4.7 million parameters."""
    return _space("mobile", num_classes, KERNEL[-1:], EXPAND[-1:])


def _space(
    name: str, num_classes: int, kernel: tuple[int, ...], expand: tuple[int, ...]
) -> SearchSpace:
    return mbconv_space(
        name,
        resolution=tuple(range(96, 225, 16)),
        stem=(32,),
        stem_stride=2,
        stages=(
            Stage(1, (16,), (1,), (3,), (1,)),
            Stage(2, (24,), (1, 2), (3,), expand),
            Stage(2, (40,), (1, 2), kernel, expand),
            Stage(2, (80,), (1, 2, 3), (3,), expand),
            Stage(1, (112,), (1, 2, 3), kernel, expand),
            Stage(2, (192,), (1, 2, 3, 4), kernel, expand),
            Stage(1, (320,), (1,), (3,), expand),
        ),
        head=(1280,),
        num_classes=num_classes,
        activation="relu6",
        turned=True,
        norm_epsilon=1e-3,
    )
