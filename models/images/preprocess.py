"""From the bytes of a photo to the array that a subnet reads; shared by trainer and server.

Both sides call the same functions, so an image scores the same in the evaluation and in an answer.
No torch here.

What happens to a photo, in this order: it is decoded (``image``), a large JPEG at a fraction of its
size; the largest centred square (or ``crop_ratio`` of it) is resized to the subnet's resolution;
channels are normalized. Each step is a documented call of Pillow, which a script can repeat:
``Preprocess.steps`` has the numbers for it, ``docs/export.md`` the script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from models.images.header import MAX_PIXELS, ImageHeader
from models.images.image import WHITE, Photo, decode_image, decode_plain_jpeg, read_header, size_of
from models.mistake import in_words

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_REDUCING_GAP = 3.0
"""Pillow's: a large photo is first averaged down to so many times the target. Much faster."""


_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
_Byte = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Preprocess:
    """How images become arrays for one bundle. JSON round trip; equal by value.

    ``mean`` and ``std`` are per channel, for pixels in 0..1. ``crop_ratio`` is the part of the
    shorter side that the centred square keeps (0.875 is usual for ImageNet, 1.0 keeps all of it);
    None squeezes the whole image to a square.
    """

    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]
    crop_ratio: Annotated[float, Field(ge=0.01, le=1)] | None = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    background: tuple[_Byte, _Byte, _Byte] = WHITE

    def to_json(self) -> dict[str, object]:
        """The fields as plain JSON values."""
        return _JSON.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Preprocess:
        """The reverse of ``to_json``. ValueError names the field that is wrong."""
        try:
            return _JSON.validate_json(json.dumps(document))
        except ValidationError as error:
            raise ValueError(f"preprocess: {in_words(error)}") from None

    def steps(self, resolution: int, largest: int) -> dict[str, object]:
        """All numbers of the way from a file to what a subnet reads, for JSON.

        ``resolution``: the subnet's; ``largest``: of the space's resolutions, for which a photo is
        decoded whatever subnet it is for.
        """
        return {
            **self.to_json(),
            "resolution": resolution,
            "decode_side": self.decode_side(largest),
            "reducing_gap": self._reducing_gap,
        }

    def decode_side(self, resolution: int) -> int:
        """A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides stay this long.

        Twice what the crop needs, so that the last reduction is still a proper resampling.
        """
        return math.ceil(2 * resolution / (self.crop_ratio or 1.0))

    def decode(
        self,
        data: bytes,
        resolution: int,
        max_pixels: int = MAX_PIXELS,
        header: ImageHeader | None = None,
    ) -> Photo:
        """``decode_image`` with this bundle's background, fast for a target of ``resolution``.

        ``header``: of ``data``, if it has been read.
        """
        if header is None:
            header = read_header(data, max_pixels)
        min_side = self.decode_side(resolution)
        plain = decode_plain_jpeg(data, header, min_side, max_pixels)
        if plain is not None:
            return plain
        return decode_image(
            data,
            background=self.background,
            min_side=min_side,
            max_pixels=max_pixels,
            header=header,
        )

    def pixels(self, photo: Photo, resolution: int) -> np.ndarray:
        """Crop and resize an RGB image: uint8 of shape (resolution, resolution, 3).

        An image that has this size already is returned unchanged.
        """
        if size_of(photo) == (resolution, resolution) and self.crop_ratio in (None, 1.0):
            return np.asarray(photo)
        image = Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo
        assert image.mode == "RGB", image.mode
        width, height = image.size
        box = (0.0, 0.0, float(width), float(height))
        if self.crop_ratio is not None:
            side = min(width, height) * self.crop_ratio
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        resized = image.resize(
            (resolution, resolution),
            self._filter,
            box=box,
            reducing_gap=self._reducing_gap,
        )
        return np.asarray(resized)

    def resized(self, pixels: np.ndarray, resolution: int) -> np.ndarray:
        """What ``pixels`` answered, at another resolution; unchanged where it is the same.

        For a subnet that is chosen after a large photo was prepared. Not bit for bit what
        ``pixels`` makes of the photo: it is resampled twice, as supernets are trained. To resample
        the photo itself would take several times as long, in a thread that has to run subnets.
        """
        if pixels.shape[0] == resolution:
            return pixels
        image = Image.fromarray(pixels)
        return np.asarray(image.resize((resolution, resolution), self._filter))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (batch, height, width, 3) -> float32 (batch, 3, height, width), contiguous."""
        assert pixels.shape[-1] == 3, pixels.shape
        assert pixels.dtype == np.uint8, pixels.dtype
        scale, offset = self._affine
        # Reordered as bytes, a quarter of what floats would be; the rest in place.
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
        images *= scale
        images += offset
        return images

    @property
    def _filter(self) -> Image.Resampling:
        return _INTERPOLATIONS[self.interpolation]

    @property
    def _reducing_gap(self) -> float | None:
        return None if self.interpolation == "nearest" else _REDUCING_GAP

    @cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        # (value / 255 - mean) / std as value * scale + offset, float32 of shape (1, 3, 1, 1).
        mean, std = (np.array(v, np.float64).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def array(self, photo: Photo, resolution: int) -> np.ndarray:
        """One RGB image as a subnet reads it: float32 of shape (3, resolution, resolution)."""
        return self.normalize(self.pixels(photo, resolution)[None])[0]


_JSON = TypeAdapter(Preprocess)
