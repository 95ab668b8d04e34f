"""ImageSource: an image as a program has it, and what becomes of it before it is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.images.header import ImageError
from models.images.image import Photo, upright_rgb
from shiftnas_serve.problem import Problem

ImageSource = str | Path | bytes | Image.Image | np.ndarray
"""A file's path, its content, or what was decoded: uint8 (height, width, 3), RGB."""


def read_source(
    image: ImageSource, background: tuple[int, int, int], place: str = ""
) -> bytes | Photo:
    """The bytes of a file, or pixels, those that are transparent on ``background``.

    Raises ValueError for what is not an image, Problem for one that is damaged; they begin with
    ``place``.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            width, height = image.size
            raise ValueError(f"{place}an image must have pixels, not {width} x {height}")
        try:
            return upright_rgb(image, background)
        except ImageError as error:
            raise Problem(error.status, place + error.reason) from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"{place}an array must be uint8 (height, width, 3), not {image.dtype} {image.shape}"
            )
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ValueError(f"{place}cannot read {image}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}{image!r:.60} is not an image: {error}") from None
