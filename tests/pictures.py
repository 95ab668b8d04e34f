"""Pictures for tests, and folders of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(side: int = 40, seed: int = 0) -> Image.Image:
    """A smooth colour picture: noise would not survive JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_photos(folder: Path, count: int, side: int = 40) -> Path:
    """Different pictures of all formats, some of them in a folder below."""
    (folder / "below").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        kind = ("JPEG", "PNG", "WEBP")[index % 3]
        file = folder / ("below" if index % 2 else ".") / f"{index}.{kind.lower()}"
        file.write_bytes(encoded(picture(side, seed=index), kind))
    return folder
