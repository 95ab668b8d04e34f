"""Random changes to training images, one set of draws per image.

torchvision's batch transforms draw once per batch, which is another (weaker) augmentation, and
a per-image loop over them costs 0.1 ms and more an image. The crop, flip and cutout here are
gathers over the whole batch: under a millisecond for 128 images of 32x32 on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

Border = Literal["reflect", "zero"]
Policy = Literal[
    "randaugment", "autoaugment-cifar10", "autoaugment-imagenet", "trivialaugment", "augmix"
]


@dataclass(frozen=True)
class Augment:
    """Which random changes an image gets, in this order.

    policy: one of torchvision's policies, applied image by image (0.1 ms and more an image at
    32x32), or None. padding: the image moves by up to this many pixels on both axes; what
    enters is its mirror image (border "reflect") or black ("zero"). flip: mirror left-right
    with probability 1/2; not for digits or text. cutout: side in pixels of a square of zeros
    (the mean colour, since it is cut after normalization) at a random centre; 0 for none
    (arXiv 1708.04552).

    Raises ValueError for a value that is not allowed.
    """

    padding: int = 4
    border: Border = "reflect"
    flip: bool = True
    cutout: int = 0
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.padding < 0 or self.cutout < 0:
            raise ValueError(
                f"augment: padding {self.padding}, cutout {self.cutout}: give 0 or more pixels"
            )
        if self.border not in get_args(Border):
            raise ValueError(
                f"augment.border {self.border!r}: allowed are {', '.join(get_args(Border))}"
            )
        if self.policy is not None and self.policy not in get_args(Policy):
            raise ValueError(
                f"augment.policy {self.policy!r}: allowed are {', '.join(get_args(Policy))}, none"
            )

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change a batch: uint8 (B, 3, H, W) in and out. `generator` lives on the CPU."""
        if self.policy is not None:
            images = apply_policy(images, self.policy, generator)
        if self.padding or self.flip:
            images = crop_and_flip(
                images, self.padding, border=self.border, flip=self.flip, generator=generator
            )
        return images

    def erase(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Cut the square out of normalized images, float32 (B, 3, H, W)."""
        return cutout(images, self.cutout, generator) if self.cutout else images


def crop_and_flip(
    images: torch.Tensor,
    padding: int,
    *,
    border: Border,
    flip: bool,
    generator: torch.Generator,
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
    shift_y = torch.randint(-padding, padding + 1, (count, 1), generator=generator)
    shift_x = torch.randint(-padding, padding + 1, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < (0.5 if flip else 0.0)
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


def cutout(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """Set a square of `side` pixels per image to 0, in place; it may hang over the border.

    images: (B, 3, H, W), any type.
    """
    count, _, height, width = images.shape
    top = torch.randint(height, (count, 1), generator=generator) - side // 2
    left = torch.randint(width, (count, 1), generator=generator) - side // 2
    rows, columns = torch.arange(height), torch.arange(width)
    inside_y = (rows >= top) & (rows < top + side)
    inside_x = (columns >= left) & (columns < left + side)
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    return images.masked_fill_(inside[:, None].to(images.device), 0)


def apply_policy(images: torch.Tensor, policy: Policy, generator: torch.Generator) -> torch.Tensor:
    """One of torchvision's policies on every image: uint8 (B, 3, H, W) in and out.

    They draw from torch's global generator, so that one is set per batch and put back.
    """
    from torchvision.transforms import v2

    transform: torch.nn.Module
    if policy == "randaugment":
        transform = v2.RandAugment()
    elif policy == "autoaugment-cifar10":
        transform = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    elif policy == "autoaugment-imagenet":
        transform = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    elif policy == "trivialaugment":
        transform = v2.TrivialAugmentWide()
    else:
        transform = v2.AugMix()
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([transform(image) for image in images])


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Mirror indices into 0..size-1 without repeating the edge, as torch's "reflect" pads."""
    last = size - 1
    return last - (last - index.abs()).abs()
