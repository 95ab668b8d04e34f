"""Encoded images to one uint8 tensor, once, in a pool of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.preprocess import ImageError, Preprocess, decode_image

_CHUNK = 256  # images per task: enough that the pool's own work does not show
_MAX_PIXELS = 200_000_000  # training images are the user's own: refuse bombs, not panoramas


def decode_images(
    encoded: Sequence[bytes | Path],
    where: Callable[[int], str],
    preprocess: Preprocess,
    resolution: int | None = None,
) -> torch.Tensor:
    """Decode to uint8 (N, 3, R, R), RGB, as the server decodes what it is sent.

    encoded: file contents or paths. where: names image i in an error. preprocess: how images are
    cropped and resized. resolution: R in pixels; None takes the side of the images, which need
    to be square and of one size.
    Raises ValueError naming the first image that cannot be decoded or does not fit.
    """
    assert len(encoded) > 0
    side = resolution
    if side is None:
        first = _decode_as_it_is(encoded[0], where(0), preprocess)
        if first.width != first.height:
            raise ValueError(
                f"{where(0)} is {first.width}x{first.height}, not square: "
                "give a resolution to crop and resize to"
            )
        side = first.width
    _check_memory(len(encoded), side)
    images = np.empty((len(encoded), 3, side, side), dtype=np.uint8)

    def decode(row: int) -> Image.Image:
        if resolution is not None:
            return _decode_for(resolution, encoded[row], where(row), preprocess)
        image = _decode_as_it_is(encoded[row], where(row), preprocess)
        if image.size != (side, side):
            raise ValueError(
                f"{where(row)} is {image.width}x{image.height}, {where(0)} is {side}x{side}: "
                "give a resolution to crop and resize to"
            )
        return image

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(encoded))):
            images[row] = preprocess.pixels(decode(row), side).transpose(2, 0, 1)

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        # map() raises in the order of the rows, so the same bad image is named every time.
        for _ in pool.map(decode_chunk, range(0, len(encoded), _CHUNK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


def _decode_for(
    resolution: int, encoded: bytes | Path, where: str, preprocess: Preprocess
) -> Image.Image:
    """Decoded for a crop to `resolution`: a large JPEG at a fraction of its size."""
    try:
        return preprocess.decode(_contents(encoded), resolution, _MAX_PIXELS)
    except (ImageError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error


def _decode_as_it_is(encoded: bytes | Path, where: str, preprocess: Preprocess) -> Image.Image:
    try:
        return decode_image(
            _contents(encoded), background=preprocess.background, max_pixels=_MAX_PIXELS
        )
    except (ImageError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error


def _check_memory(count: int, side: int) -> None:
    """Refuse what cannot fit: the system would grant the memory now and kill the run later."""
    if not hasattr(os, "sysconf"):
        return
    needed = count * 3 * side * side
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > installed:
        raise ValueError(
            f"{count:,} images of {side}x{side} take {needed / 1e9:.1f} GB, this machine has "
            f"{installed / 1e9:.1f} GB: give a smaller resolution or fewer images"
        )


def _contents(encoded: bytes | Path) -> bytes:
    return encoded if isinstance(encoded, bytes) else encoded.read_bytes()
