"""Encoded images to one uint8 tensor, once, in a pool of threads."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

_CHUNK = 256  # images per task: enough that the pool's own work does not show


def decode_images(
    encoded: Sequence[bytes | Path],
    where: Callable[[int], str],
    resolution: int | None = None,
) -> torch.Tensor:
    """Decode to uint8 (N, 3, R, R), RGB, as the server decodes what it is sent.

    encoded: file contents or paths. where: names image i in an error. resolution: R in pixels;
    None takes the images as they are, which needs them square and of one size.
    Raises ValueError naming the first image that cannot be decoded or does not fit.
    """
    assert len(encoded) > 0
    side = resolution if resolution is not None else _common_side(encoded[0], where(0))
    images = np.empty((len(encoded), 3, side, side), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(encoded))):
            images[row] = _decode(encoded[row], where(row), side, resize=resolution is not None)

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        # map() raises in the order of the rows, so the same bad image is named every time.
        for _ in pool.map(decode_chunk, range(0, len(encoded), _CHUNK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


def _common_side(first: bytes | Path, where: str) -> int:
    with _open(first, where) as image:
        if image.width != image.height:
            raise ValueError(
                f"{where} is {image.width}x{image.height}, not square: "
                "give a resolution to resize and crop to"
            )
        return image.width


def _decode(encoded: bytes | Path, where: str, side: int, *, resize: bool) -> np.ndarray:
    """uint8 (3, side, side)."""
    try:
        with _open(encoded, where) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is not a readable image: {error}") from error
    if image.size != (side, side):
        if not resize:
            raise ValueError(
                f"{where} is {image.width}x{image.height}, others are {side}x{side}: "
                "give a resolution to resize them to"
            )
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _open(encoded: bytes | Path, where: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
    except OSError as error:
        raise ValueError(f"{where} is not a readable image") from error
