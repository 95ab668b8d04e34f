"""The size of the images that a subnet with an elastic resolution reads. Uses torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def at_resolution(images: Tensor, resolution: int) -> Tensor:
    """Resize square images (B, 3, H, H) to ``resolution``, with the server's bicubic filter."""
    if images.shape[-1] == resolution:
        return images
    size = (resolution, resolution)
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
