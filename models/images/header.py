"""ImageHeader: what an image file says of itself before any of it is decoded."""

from __future__ import annotations

from typing import NamedTuple

from models.images.orientation import UPRIGHT

MAX_PIXELS = 25_000_000
"""How many are decoded: 100 MB as Pillow keeps them, and a copy."""

REDUCED_JPEG = 3
"""A JPEG may have so many times more, because it is decoded at a fraction of its size."""

_COEFFICIENTS = 6


class ImageError(ValueError):
    """These bytes are not an image that we accept. ``status`` is the HTTP status that says why.

    400 there are no bytes; 413 too many pixels; 415 another format; 422 damaged, or absurd.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class ImageHeader(NamedTuple):
    """Format (``JPEG``, ``PNG``, ``WEBP``); width and height in pixels, as they are stored.

    ``orientation``: 1 to 8, as EXIF numbers them (WebP: not read here). Of a JPEG: ``colours``, the
    number of its components, and ``scans_at``, where in the file its scans begin if there are
    several, else 0.
    """

    format: str
    width: int
    height: int
    orientation: int = UPRIGHT
    colours: int = 0
    scans_at: int = 0

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.width * self.height


def damaged(kind: str, reason: str) -> ImageError:
    """What is raised for a file of this format that is not as it should be."""
    return ImageError(f"damaged {kind} file: {reason}", 422)


def most_pixels(header: ImageHeader, max_pixels: int) -> int:
    """How many the file may have, where at most ``max_pixels`` are decoded.

    Of a JPEG with several scans libjpeg keeps two bytes for each pixel and colour, whatever the
    size that is asked for.
    """
    if header.format != "JPEG":
        return max_pixels
    most = REDUCED_JPEG * max_pixels
    return min(most, _COEFFICIENTS * max_pixels // header.colours) if header.scans_at else most


def check_size(width: int, height: int, max_pixels: int, whole: int | None = None) -> None:
    """Raises ImageError 413 where these are too many pixels.

    ``whole``: how many an image may have that is decoded at its own size, if those are fewer.
    """
    if width * height > max_pixels:
        many = f"{width} x {height} = {width * height:,} pixels"
        also = ""
        if whole is not None and whole < max_pixels:
            also = f" ({whole:,} of a JPEG that cannot be decoded at a fraction of its size)"
        raise ImageError(f"{many}; at most {max_pixels:,} are accepted{also}", 413)
