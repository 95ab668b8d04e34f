"""Augment: which random changes training images get, and the ones that move pixels.

torchvision's batch transforms draw once per batch, which is another (weaker) augmentation, and
a per-image loop over them costs 0.1 ms and more an image. The crop, flip and cutout here are
gathers over the whole batch: under a millisecond for 128 images of 32x32 on one core. What is
done image by image is torchvision's and timm's (trainer.data.image_policies).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from trainer.data.draws import Draws
from trainer.recipes.allowed import SHARE, at_least, check_numbers

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


def crop_and_flip(
    images: torch.Tensor, padding: int, *, border: Border, flip: bool, draws: Draws
) -> torch.Tensor:
    """Pad by `padding` pixels, crop back at a random place, mirror half of the images.

    images: uint8 (B, 3, H, W), contiguous. The padded image is never built: a crop is a
    gather at shifted, reflected coordinates.
    Raises ValueError if a reflected border would be as large as the image.
    """
    count, channels, height, width = images.shape
    if border == "reflect" and padding >= min(height, width):
        raise ValueError(
            f"augment.padding {padding} with border 'reflect' needs images larger than "
            f"{padding} pixels, these are {height}x{width}"
        )
    shift_y = draws.integers(-padding, padding + 1)
    shift_x = draws.integers(-padding, padding + 1)
    mirrored = draws.uniform() < (0.5 if flip else 0.0)
    rows = torch.arange(height) + shift_y
    columns = torch.arange(width) + shift_x
    columns = torch.where(mirrored, columns.flip(1), columns)
    outside_y = (rows < 0) | (rows >= height)
    outside_x = (columns < 0) | (columns >= width)
    if border == "reflect":
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    else:
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    places = places.to(images.device).expand(count, channels, height * width)
    moved = images.reshape(count, channels, height * width).gather(2, places)
    moved = moved.view(count, channels, height, width)
    if border == "zero":
        outside = outside_y[:, :, None] | outside_x[:, None, :]
        moved.masked_fill_(outside[:, None].to(images.device), 0)
    return moved


def cutout(images: torch.Tensor, side: int, draws: Draws) -> torch.Tensor:
    """Set a square of `side` pixels per image to 0, in place; it may hang over the border.

    images: (B, 3, H, W), any type.
    """
    height, width = images.shape[2:]
    top = draws.integers(0, height) - side // 2
    left = draws.integers(0, width) - side // 2
    rows, columns = torch.arange(height), torch.arange(width)
    inside_y = (rows >= top) & (rows < top + side)
    inside_x = (columns >= left) & (columns < left + side)
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    return images.masked_fill_(inside[:, None].to(images.device), 0)


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Mirror indices into 0..size-1 without repeating the edge, as torch's "reflect" pads."""
    last = size - 1
    return last - (last - index.abs()).abs()
