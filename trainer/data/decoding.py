"""Encoded images to one uint8 tensor, once, in a pool of threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from models.images.header import ImageError
from models.images.image import Photo, decode_image
from models.images.preprocess import Preprocess
from trainer.data.sources import Rows

_CHUNK = 256  # images per task: enough that the pool's own work does not show
_TRIED = 100
_MAX_PIXELS = 200_000_000  # training images are the user's own: refuse bombs, not panoramas


def decode_images(
    rows: Rows,
    preprocess: Preprocess,
    resolution: int | None = None,
    *,
    skip_broken: bool = False,
) -> tuple[torch.Tensor, dict[int, str]]:
    """Decode to uint8 (N, 3, R, R), RGB, as the server decodes what it is sent.

    preprocess: how images are cropped and resized. resolution: R in pixels; None takes the side
    of the images, which need to be square and of one size. skip_broken: leave images that cannot
    be decoded black, and answer the reason for each by its number.
    Raises ValueError naming the first image that cannot be decoded or does not fit.
    """
    assert len(rows) > 0
    side = own_side(rows, preprocess) if resolution is None else resolution
    _check_memory(len(rows), side)
    images = np.zeros((len(rows), 3, side, side), dtype=np.uint8)
    broken: dict[int, str] = {}

    def decode(row: int) -> Photo:
        if resolution is not None:
            return decode_for(resolution, rows.read(row), preprocess)
        image = decode_whole(rows.read(row), preprocess)
        if image.size != (side, side):
            raise ValueError(
                f"{rows.where(row)} is {image.width}x{image.height}, others are {side}x{side}: "
                "give a resolution to crop and resize to"
            )
        return image

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(rows))):
            try:
                image = decode(row)
            except (ImageError, OSError) as error:
                message = f"{rows.where(row)}: {error}"
                if not skip_broken:
                    raise ValueError(message) from error
                broken[row] = message
            else:
                images[row] = preprocess.pixels(image, side).transpose(2, 0, 1)

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        # map() raises in the order of the rows, so the same bad image is named every time.
        for _ in pool.map(decode_chunk, range(0, len(rows), _CHUNK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images), dict(sorted(broken.items()))


def decode_for(resolution: int, content: bytes, preprocess: Preprocess) -> Photo:
    """Decoded for a crop to `resolution`: a large JPEG at a fraction of its size."""
    return preprocess.decode(content, resolution, _MAX_PIXELS)


def decode_whole(content: bytes, preprocess: Preprocess) -> Image.Image:
    """Decoded at its own size."""
    return decode_image(content, background=preprocess.background, max_pixels=_MAX_PIXELS)


def own_side(rows: Rows, preprocess: Preprocess) -> int:
    """The side of the first image that can be decoded. Raises ValueError if it is not square."""
    reason = ""
    for row in range(min(len(rows), _TRIED)):
        try:
            image = decode_whole(rows.read(row), preprocess)
        except (ImageError, OSError) as error:
            reason = reason or f"{rows.where(row)}: {error}"
            continue
        if image.width != image.height:
            raise ValueError(
                f"{rows.where(row)} is {image.width}x{image.height}, not square: "
                "give a resolution to crop and resize to"
            )
        return image.width
    raise ValueError(reason)


def _check_memory(count: int, side: int) -> None:
    """Refuse what cannot fit: the system would grant the memory now and kill the run later."""
    needed, installed = count * 3 * side * side, installed_bytes()
    if installed is not None and needed > installed:
        raise ValueError(
            f"{count:,} images of {side}x{side} take {needed / 1e9:.1f} GB, this machine has "
            f"{installed / 1e9:.1f} GB: give a smaller resolution, or data_in_memory=auto"
        )


def installed_bytes() -> int | None:
    """The memory of this machine; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
