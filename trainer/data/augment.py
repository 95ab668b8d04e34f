"""The random changes of training images that move pixels of a whole batch.

torchvision's batch transforms draw once per batch, which is another (weaker) augmentation, and
a per-image loop over them costs 0.1 ms and more an image. The crop, flip and cutout here are
gathers over the whole batch: under a millisecond for 128 images of 32x32 on one core. What is
done image by image is torchvision's and timm's (trainer.data.image_policies).
"""

from __future__ import annotations

import torch

from trainer.data.draws import Draws
from trainer.recipes.settings import Border


def crop_and_flip(
    images: torch.Tensor,
    padding: int,
    *,
    border: Border,
    flip: bool | torch.Tensor,
    draws: Draws,
) -> torch.Tensor:
    """Pad by `padding` pixels, crop back at a random place, mirror half of the images.

    images: uint8 (B, 3, H, W), contiguous. The padded image is never built: a crop is a
    gather at shifted, reflected coordinates. flip: whether to mirror, each image with
    probability 1/2, or which images to mirror, bool (B, 1).
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
    mirrored = draws.uniform() < (0.5 if flip is True else 0.0)
    if isinstance(flip, torch.Tensor):
        mirrored = flip
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
