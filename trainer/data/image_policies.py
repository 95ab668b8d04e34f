"""What is done to one image at a time, by torchvision and timm: random crops and policies.

timm has the RandAugment of the DeiT and AutoFormer recipes; importing it takes 2 to 3 s, so that
is paid only by runs whose policy asks for it. Both libraries draw from global generators: those
are seeded for every image and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageOps

from trainer.data.draws import global_generators_kept, seed_global_generators
from trainer.recipes.settings import Policy

_ASPECTS = (3 / 4, 4 / 3)

ImageChange = Callable[[Image.Image], Image.Image]


def random_resized_crop(image: Image.Image, side: int, area: float, seed: int) -> Image.Image:
    """A random part of an image, at least `area` of it, resized to side x side (bicubic).

    As timm and torchvision do: up to ten tries, then the largest centred crop.
    """
    from torchvision.transforms import RandomResizedCrop

    with global_generators_kept():
        seed_global_generators(seed)
        top, left, height, width = RandomResizedCrop.get_params(
            image,  # type: ignore[arg-type]
            scale=[area, 1.0],
            ratio=list(_ASPECTS),
        )
    box = (left, top, left + width, top + height)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def apply_policy(
    images: torch.Tensor, policy: Policy, seeds: Sequence[int], mean: Sequence[float]
) -> torch.Tensor:
    """A policy on every image: uint8 (B, 3, H, W) in and out, on the CPU.

    mean: of the channels, 0..1; the colour of what moves in from outside (timm's policy).
    """
    change = _change(policy, images.shape[-1], tuple(mean))
    changed = torch.empty_like(images)
    with global_generators_kept():
        for row, seed in enumerate(seeds):
            seed_global_generators(seed)
            changed[row] = to_tensor(change(to_image(images[row])))
    return changed


def to_image(pixels: torch.Tensor) -> Image.Image:
    """uint8 (3, H, W) on the CPU as a PIL image."""
    # band by band: to put the channels last takes five times as long
    return Image.merge("RGB", [Image.fromarray(band) for band in pixels.numpy()])


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


@lru_cache(maxsize=8)
def _change(policy: Policy, side: int, mean: tuple[float, ...]) -> ImageChange:
    from torchvision.transforms import v2

    if policy == "rand-m9-mstd0.5-inc1":
        from timm.data.auto_augment import rand_augment_transform

        # As timm's own training transform sets them, and DeiT's and AutoFormer's through it.
        options = {
            "translate_const": int(side * 0.45),
            "img_mean": tuple(min(255, round(255 * value)) for value in mean),
            "interpolation": Image.Resampling.BICUBIC,
        }
        transform = rand_augment_transform(policy, options)
        for operation in transform.ops:
            if operation.name == "PosterizeIncreasing":
                operation.aug_fn = _posterize
        return transform
    if policy == "randaugment":
        return v2.RandAugment()
    if policy == "autoaugment-cifar10":
        return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    if policy == "autoaugment-imagenet":
        return v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    if policy == "trivialaugment":
        return v2.TrivialAugmentWide()
    return v2.AugMix()


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's, which asks for 0 bits at its strongest: black, where Pillow 13 raises."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)
