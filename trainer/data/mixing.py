"""Changes to normalized images that need the whole batch, or noise: erasing, Mixup, CutMix.

Of their definitions only the share of two images is drawn differently: for every image, where
timm's default and torchvision draw once per batch and process. So an image is mixed in the same
way however many processes share the batch, and one large batch is not all mixed alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from trainer.data.draws import Draws
from trainer.recipes.settings import Augment

_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)
_ATTEMPTS = 10


def random_erase(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Fill a random rectangle of some images with normal noise, in place.

    images: normalized float32 (B, 3, H, W). A rectangle that does not fit is drawn again, up to
    ten times (as timm and torchvision do).
    """
    height, width = images.shape[2:]
    chosen = (draws.uniform() < probability).flatten().tolist()
    for row, seed in enumerate(draws.seeds()):
        if not chosen[row]:
            continue
        generator = torch.Generator().manual_seed(seed)
        for _ in range(_ATTEMPTS):
            size, shape, y, x = torch.rand(4, generator=generator).tolist()
            low, high = (math.log(aspect) for aspect in _ERASED_ASPECT)
            aspect = math.exp(low + (high - low) * shape)
            smallest, largest = _ERASED_AREA
            area = height * width * (smallest + (largest - smallest) * size)
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top, left = int(y * (height - rows + 1)), int(x * (width - columns + 1))
                noise = torch.randn(3, rows, columns, generator=generator)
                images[row, :, top : top + rows, left : left + columns] = noise.to(images.device)
                break
    return images


def mix(
    images: torch.Tensor, labels: torch.Tensor, classes: int, augment: Augment, draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup and CutMix: each image with the one half a batch away.

    images: float32 (B, 3, H, W). labels: int64 (B,). Answers the mixed images and the share of
    each class in them, float32 (B, classes): the pixel shares that an image really got.
    """
    count, _, height, width = images.shape
    # Half a batch away, and not the batch reversed: for processes that take every n-th image and
    # have an even number of them, it is the same partner however many they are.
    partner = (torch.arange(count) + count // 2) % count
    mixed = draws.uniform() < augment.mix_probability
    cut = draws.uniform() < augment.cutmix_share
    center_y, center_x = draws.integers(0, height), draws.integers(0, width)
    if not augment.mixup:
        cut = torch.ones_like(cut)
    if not augment.cutmix:
        cut = torch.zeros_like(cut)
    kept = torch.ones(count, 1)
    if augment.mixup:
        kept = torch.where(mixed & ~cut, draws.beta(augment.mixup), kept)
    kept_map = kept[:, :, None].expand(count, height, width)
    if augment.cutmix:
        side = (1 - draws.beta(augment.cutmix)).sqrt()
        half_y, half_x = (height * side).long() // 2, (width * side).long() // 2
        rows, columns = torch.arange(height), torch.arange(width)
        inside_y = (rows >= center_y - half_y) & (rows < center_y + half_y)
        inside_x = (columns >= center_x - half_x) & (columns < center_x + half_x)
        inside = inside_y[:, :, None] & inside_x[:, None, :] & (mixed & cut)[:, :, None]
        kept_map = torch.where(inside, 0.0, kept_map)
        # What hangs over the border is not cut out: the label gets the share that is.
        kept = kept * (1 - inside.float().mean((1, 2)))[:, None]
    weight = kept_map[:, None].to(images.device)
    shares = F.one_hot(labels, classes).float()
    kept = kept.to(images.device)
    return (
        torch.lerp(images[partner], images, weight),
        torch.lerp(shares[partner], shares, kept),
    )
