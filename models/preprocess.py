"""From the bytes of a photo to the array that a subnet reads; shared by trainer and server.

Both sides call the same functions, so an image scores the same in the evaluation and in an answer.
No torch here.

What happens to a photo, in this order: format and size are checked before any pixel is decoded; a
large JPEG is decoded at a fraction of its size; EXIF orientation is applied; greyscale, palette,
CMYK and 16-bit become 8-bit RGB, transparency is laid on ``background``; the largest centred
square (or ``crop_ratio`` of it) is resized to the subnet's resolution; channels are normalized.
Colour profiles are ignored, as the training data's are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import simplejpeg
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 25_000_000
WHITE = (255, 255, 255)

# What an orientation, if there is one, stands in: EXIF or XMP.
_METADATA = (b"Exif\0\0", b"http://ns.adobe.com/xap/")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


Photo = Image.Image | np.ndarray
"""A decoded image: as Pillow has it, or uint8 (height, width, 3), which costs less to make."""


class ImageError(ValueError):
    """These bytes are no image we accept. ``status`` is the HTTP status that says why.

    400 there are no bytes; 413 too many pixels; 415 another format; 422 damaged.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


def size_of(photo: Photo) -> tuple[int, int]:
    """Width and height, in pixels."""
    if isinstance(photo, np.ndarray):
        return photo.shape[1], photo.shape[0]
    return photo.size


def sniff_format(data: bytes) -> str | None:
    """The format that the first bytes announce: one of ``FORMATS``, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def decode_image(
    data: bytes,
    *,
    background: tuple[int, int, int] = WHITE,
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """An upright 8-bit RGB image from the bytes of a JPEG, PNG or WebP file.

    Args:
        data: the file. Of several frames the first is taken.
        background: the colour behind transparent pixels.
        min_side: sides longer than this need not be kept: a large JPEG is then decoded at 1/2, 1/4
            or 1/8 of its size, several times faster.
        max_pixels: more are refused before they are decoded.

    Raises:
        ImageError: for anything else, with a reason that a person can act on.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)", 400)
    announced = sniff_format(data)
    if announced is None:
        raise ImageError("not an image this server reads: send JPEG, PNG or WebP", 415)
    try:
        image = Image.open(io.BytesIO(data), formats=(announced,))
        _check_size(image.size, max_pixels)
        if min_side is not None:
            image.draft("RGB", (min_side, min_side))
        image.load()
        return _upright(_to_rgb(image, background), _orientation(image))
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"too many pixels: at most {max_pixels:,} are accepted", 413) from None
    # Decoders meet hostile bytes with many kinds of errors (OSError, SyntaxError, struct.error,
    # zlib.error, IndexError, ...); all of them mean that the file is damaged.
    except Exception as error:  # noqa: BLE001
        raise ImageError(f"damaged {announced} file: {error}", 422) from None


def decode_plain_jpeg(data: bytes, min_side: int | None, max_pixels: int) -> np.ndarray | None:
    """Most of what is sent: a sound JPEG, neither turned nor much larger than needed.

    uint8 (height, width, 3).

    The same libjpeg-turbo and the same pixels as Pillow's, which reads the markers in Python and
    takes several times as long over a small photo. None: anything else, Pillow decides about it.
    """
    if any(name in data for name in _METADATA):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    width, height = int(width), int(height)
    _check_size((width, height), max_pixels)
    reduced = min_side is not None and min(width, height) >= 2 * min_side
    if reduced or colours not in ("YCbCr", "Gray"):
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} = {width * height:,} pixels; at most {max_pixels:,} are accepted",
            413,
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - broken metadata must not cost the user a sound photo
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit greyscale: keep the high byte, as Pillow does for 16-bit colour.
        high = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert(
            "RGB"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """How images become arrays for one bundle. JSON round trip; equal by value.

    ``mean`` and ``std`` are per channel, for pixels in 0..1. ``crop_ratio`` is the part of the
    shorter side that the centred square keeps (0.875 is usual for ImageNet, 1.0 keeps all of it);
    None squeezes the whole image to a square.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_ratio: float | None = 1.0
    interpolation: str = "bicubic"
    background: tuple[int, int, int] = WHITE

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean and std need 3 numbers each, not {self.mean} and {self.std}")
        if not all(math.isfinite(v) for v in self.mean) or not all(v > 0 for v in self.std):
            raise ValueError(f"mean must be finite, std positive; got {self.mean} and {self.std}")
        if self.crop_ratio is not None and not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio must be in (0, 1] or null, not {self.crop_ratio}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {sorted(_INTERPOLATIONS)}, "
                f"not {self.interpolation!r}"
            )
        if len(self.background) != 3 or not all(0 <= v <= 255 for v in self.background):
            raise ValueError(f"background must be 3 integers in 0..255, not {self.background}")

    def to_json(self) -> dict[str, object]:
        """The fields as plain JSON values."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_ratio": self.crop_ratio,
            "interpolation": self.interpolation,
            "background": list(self.background),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Preprocess:
        """The reverse of ``to_json``. ValueError names the field that is wrong."""
        known = {"mean", "std", "crop_ratio", "interpolation", "background"}
        for name in document:
            if name not in known:
                raise ValueError(f"preprocess has no field {name!r}; it has {sorted(known)}")
        try:
            crop_ratio = document.get("crop_ratio", 1.0)
            return cls(
                mean=_three(document, "mean"),
                std=_three(document, "std"),
                crop_ratio=None if crop_ratio is None else _number("crop_ratio", crop_ratio),
                interpolation=str(document.get("interpolation", "bicubic")),
                background=_colour(document.get("background", list(WHITE))),
            )
        except ValueError as error:
            raise ValueError(f"preprocess: {error}") from None

    def decode(self, data: bytes, resolution: int, max_pixels: int = MAX_PIXELS) -> Photo:
        """``decode_image`` with this bundle's background, fast for a target of ``resolution``."""
        # Twice what the crop needs, so that the last reduction is still a proper resampling.
        min_side = math.ceil(2 * resolution / (self.crop_ratio or 1.0))
        if sniff_format(data) == "JPEG":
            plain = decode_plain_jpeg(data, min_side, max_pixels)
            if plain is not None:
                return plain
        return decode_image(
            data, background=self.background, min_side=min_side, max_pixels=max_pixels
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
            # Large photos are first averaged down to 3x the target: same picture, much faster.
            reducing_gap=None if self.interpolation == "nearest" else 3.0,
        )
        return np.asarray(resized)

    def resized(self, pixels: np.ndarray, resolution: int) -> np.ndarray:
        """What ``pixels`` answered, at another resolution; unchanged where it is the same.

        For a subnet that is chosen after the image was prepared. Not bit for bit what ``pixels``
        makes of the photo: it is resampled twice, as supernets are trained.
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

    @cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        # (value / 255 - mean) / std as value * scale + offset, float32 of shape (1, 3, 1, 1).
        mean, std = (np.array(v, np.float64).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def array(self, photo: Photo, resolution: int) -> np.ndarray:
        """One RGB image as a subnet reads it: float32 of shape (3, resolution, resolution)."""
        return self.normalize(self.pixels(photo, resolution)[None])[0]


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return float(value)


def _three(document: Mapping[str, object], name: str) -> tuple[float, float, float]:
    match document.get(name):
        case [first, second, third]:
            return _number(name, first), _number(name, second), _number(name, third)
        case value:
            raise ValueError(f"{name} must be 3 numbers, not {value!r}")


def _colour(value: object) -> tuple[int, int, int]:
    red, green, blue = _three({"background": value}, "background")
    return int(red), int(green), int(blue)
