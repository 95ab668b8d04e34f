"""The parts of a recipe, each a group of settings with a name in front of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from trainer.recipes.allowed import ABOVE_ZERO, NOT_ALL, SHARE, at_least, check_numbers

Border = Literal["reflect", "zero"]
Policy = Literal[
    "randaugment",
    "rand-m9-mstd0.5-inc1",
    "autoaugment-cifar10",
    "autoaugment-imagenet",
    "trivialaugment",
    "augmix",
]


@dataclass(frozen=True)
class Optimizer:
    """Of the supernet's weights: one cosine cycle with a linear warm-up.

    name: "sgd" (Nesterov, momentum 0.9) or "adamw". weight_decay is not applied to norms and
    biases. clip_norm: of the gradient, 0 for none.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    warm_up_share: float = 0.1
    clip_norm: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(
            "optimizer.",
            self,
            {
                "learning_rate": at_least(0),
                "weight_decay": at_least(0),
                "warm_up_share": SHARE,
                "clip_norm": at_least(0, "0 is no clipping"),
                "label_smoothing": NOT_ALL,
            },
        )


@dataclass(frozen=True)
class GeneratorOptions:
    """Of the architecture generator and its losses.

    resource_weight: lambda of L_RC = ((FLOPs - budget) / range)^2. resource_batch: budgets over
    which L_RC is taken every step. masked_every: every m-th step runs masks and sends the task
    loss to the generator too; the others run sliced subnets, which are faster. 1 is the paper;
    at equal time 4 to 128 did better on digits (docs/experiments.md), 16 is among them.
    temperature: of the Gumbel softmax, linear from first to last. entropy_weight: keeps it from
    settling before the supernet can tell archs apart. pretrain_steps: on the resource loss alone,
    before the supernet's first step, at pretrain_learning_rate.
    """

    learning_rate: float = 1e-3
    resource_weight: float = 20.0
    resource_batch: int = 16
    masked_every: int = 16
    first_temperature: float = 1.0
    last_temperature: float = 0.3
    entropy_weight: float = 1e-3
    pretrain_steps: int = 0
    served_share: float = 0.5
    pretrain_learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        check_numbers(
            "generator.",
            self,
            {
                "learning_rate": at_least(0),
                "resource_weight": at_least(0),
                "resource_batch": at_least(1),
                "masked_every": at_least(1, "1 masks every step, a large number the first alone"),
                "first_temperature": ABOVE_ZERO,
                "last_temperature": ABOVE_ZERO,
                "entropy_weight": at_least(0),
                "pretrain_steps": at_least(0),
                "served_share": SHARE,
                "pretrain_learning_rate": at_least(0),
            },
        )


@dataclass(frozen=True)
class Augment:
    """Which random changes an image gets, in this order.

    crop_area: a random part of the image, of at least this share of its area and of sides 3:4 to
    4:3, becomes the image (0.08 for ImageNet); 0 for none. padding: instead, the image moves by
    up to this many pixels on both axes; what enters is its mirror image (border "reflect") or
    black ("zero"). flip: mirror left-right with probability 1/2; not for digits or text.
    policy: a policy of torchvision or timm, image by image (0.1 ms and more an image at 32x32,
    2 ms at 224x224), or None. "rand-m9-mstd0.5-inc1" is timm's, of DeiT's and AutoFormer's
    recipes: torchvision's "randaugment" has fewer operations and other strengths.

    After normalization: cutout: side in pixels of a square of zeros (the mean colour) at a random
    centre; 0 for none (arXiv 1708.04552). erase: probability that a rectangle of 2 % to 33 % of
    the image becomes noise (arXiv 1708.04896, noise per pixel as in DeiT).

    mixup, cutmix: alpha of the Beta distribution by which two images share (arXiv 1710.09412,
    1905.04899); 0 for none. With both, cutmix_share of the images get CutMix and the others
    Mixup. mix_probability: share of the images that are mixed at all. Labels become shares of
    classes then; label smoothing is the loss's and composes with them.

    repeats: how many changed copies of an image a global batch holds (repeated augmentation,
    arXiv 1902.05509; 3 in DeiT). An epoch has as many steps as ever, so it sees 1 / repeats of
    the images.

    Raises ValueError for a value that is not allowed.
    """

    padding: int = 4
    border: Border = "reflect"
    flip: bool = True
    cutout: int = 0
    policy: Policy | None = None
    crop_area: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_share: float = 0.5
    mix_probability: float = 1.0
    repeats: int = 1

    def __post_init__(self) -> None:
        check_numbers(
            "augment.",
            self,
            {
                "padding": at_least(0, "in pixels"),
                "cutout": at_least(0, "in pixels"),
                "crop_area": SHARE,
                "erase": SHARE,
                "mixup": at_least(0, "alpha, like 0.8; 0 is none"),
                "cutmix": at_least(0, "alpha, like 0.8; 0 is none"),
                "cutmix_share": SHARE,
                "mix_probability": SHARE,
                "repeats": at_least(1),
            },
        )
        if self.border not in get_args(Border):
            raise ValueError(
                f"augment.border {self.border!r}: allowed are {', '.join(get_args(Border))}"
            )
        if self.policy is not None and self.policy not in get_args(Policy):
            raise ValueError(
                f"augment.policy {self.policy!r}: allowed are {', '.join(get_args(Policy))}, none"
            )
        if self.crop_area and self.padding:
            raise ValueError(
                f"augment.crop_area {self.crop_area} and padding {self.padding} both crop: "
                "set one to 0"
            )

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of classes."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass(frozen=True)
class SamplerOptions:
    """Settings that samplers share; each uses what concerns it.

    groups: number of FLOPs groups between the smallest and the largest subnet. learning_rate: the
    most that a logit of the distribution B moves at an update (the paper: 1e-3, for 5,600 updates;
    fewer updates need more).
    floor: share of the uniform distribution that is always mixed in, so that no group dies.
    as_printed: the sign of Algorithm 2 as the paper prints it, against its prose.
    jitter: draw the budget anywhere in the group, not only at its upper end.
    groups_per_update: how many groups ``shift-direct`` measures at an update.
    tilt, bend: of the static distribution (``static-tilt``), the tilt at the start and at the end.
    archs: the groups are these subnets, in place of the generator's answers: a JSON list of archs
    by rising FLOPs.
    """

    groups: int = 8
    learning_rate: float = 1e-2
    floor: float = 0.2
    as_printed: bool = False
    jitter: bool = True
    groups_per_update: int = 4
    tilt: tuple[float, float] = (0.0, 0.0)
    bend: float = 0.0
    archs: str = ""

    def __post_init__(self) -> None:
        check_numbers(
            "sampler_options.",
            self,
            {
                "groups": at_least(2),
                "learning_rate": at_least(0),
                "floor": SHARE,
                "groups_per_update": at_least(2, "drops are compared"),
                "bend": at_least(0, "above it the ends are drawn more often"),
            },
        )
        if not all(math.isfinite(tilt) for tilt in self.tilt):
            raise ValueError(f"sampler_options.tilt is {list(self.tilt)}; it takes two numbers")
