"""Images: from the bytes of a JPEG, PNG or WebP file to 8-bit RGB pixels.

What happens, in this order: format and size are checked before any pixel is decoded; a large JPEG
is decoded at a fraction of its size; greyscale, palette, CMYK and 16-bit become 8-bit RGB,
transparency is laid on ``background``; EXIF orientation is applied. Colour profiles are ignored, as
the training data's are.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from models.images.header import (
    MAX_PIXELS,
    ImageError,
    ImageHeader,
    check_size,
    damaged,
    most_pixels,
)
from models.images.jpeg import END, check_scans, jpeg_alone, read_jpeg_header
from models.images.orientation import UPRIGHT, exif_orientation, xmp_orientation
from models.images.png import SIGNATURE, png_alone, read_png_header
from models.images.webp import read_webp_header

FORMATS = ("JPEG", "PNG", "WEBP")
WHITE = (255, 255, 255)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What is converted at once: beside the image and its copy in RGB there are then no others of it.
_BAND_PIXELS = 500_000

Photo = Image.Image | np.ndarray
"""A decoded image: as Pillow has it, or uint8 (height, width, 3), which costs less to make."""


def size_of(photo: Photo) -> tuple[int, int]:
    """Width and height, in pixels."""
    if isinstance(photo, np.ndarray):
        return photo.shape[1], photo.shape[0]
    return photo.size


def sniff_format(data: bytes) -> str | None:
    """The format that the first bytes announce: one of ``FORMATS``, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(SIGNATURE):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """What these bytes announce, in microseconds. Raises ImageError for what is never decoded.

    ``max_pixels``: that are decoded; the file may have ``most_pixels`` of them.
    """
    announced = sniff_format(data)
    if announced is None:
        if not data:
            raise ImageError("the image is empty (0 bytes)", 400)
        raise ImageError("not an image this server reads: send JPEG, PNG or WebP", 415)
    try:
        if announced == "JPEG":
            header = read_jpeg_header(data)
        elif announced == "PNG":
            header = read_png_header(data)
        else:
            header = read_webp_header(data)
    except (struct.error, IndexError):
        raise damaged(announced, "it ends within its header") from None
    check_size(header.width, header.height, most_pixels(header, max_pixels), max_pixels)
    if header.pixels == 0:
        raise damaged(announced, f"it has {header.width} x {header.height} pixels")
    return header


def decode_image(
    data: bytes,
    *,
    background: tuple[int, int, int] = WHITE,
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    header: ImageHeader | None = None,
) -> Image.Image:
    """An upright 8-bit RGB image from the bytes of a JPEG, PNG or WebP file.

    Args:
        data: the file. Of several frames the first is taken.
        background: the colour behind transparent pixels.
        min_side: sides longer than this need not be kept: a large JPEG is then decoded at 1/2, 1/4
            or 1/8 of its size, several times faster.
        max_pixels: more are never decoded; a larger JPEG is refused unless ``min_side`` allows a
            fraction of its size.
        header: of ``data``, if it has been read.

    Raises:
        ImageError: for anything else, with a reason that a person can act on.
    """
    if header is None:
        header = read_header(data, max_pixels)
    check_scans(data, header, max_pixels)
    try:
        image = Image.open(io.BytesIO(_alone(data, header)), formats=(header.format,))
        if min_side is not None:
            image.draft("RGB", (min_side, min_side))
        check_size(*image.size, max_pixels)
        image.load()
        return _upright(_to_rgb(image, background), _orientation(image, header))
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        many = f"{header.width} x {header.height} = {header.pixels:,} pixels"
        raise ImageError(f"{many} are more than Pillow opens; send it smaller", 413) from None
    # OSError, SyntaxError, struct.error, zlib.error, IndexError, ...: the file is damaged.
    except Exception as error:  # noqa: BLE001 - decoders meet hostile bytes with many kinds
        raise damaged(header.format, str(error)) from None


def upright_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """What ``decode_image`` makes of a file, of an image that Pillow has opened or made.

    Raises ImageError where its file is damaged, and for a mode that does not say what is white.
    """
    if image.mode in ("I", "F"):
        raise ImageError(
            f"an image of mode {image.mode} does not say what is white; convert it to RGB first",
            415,
        )
    try:
        return _to_rgb(ImageOps.exif_transpose(image), background)
    except Exception as error:  # noqa: BLE001 - as in ``decode_image``
        raise damaged(image.format or image.mode, str(error)) from None


def decode_plain_jpeg(
    data: bytes, header: ImageHeader, min_side: int | None, max_pixels: int
) -> np.ndarray | None:
    """Most of what is sent: a sound JPEG, neither turned nor much larger than needed.

    uint8 (height, width, 3).

    The same libjpeg-turbo and the same pixels as Pillow's, which reads the markers in Python and
    takes several times as long over a small photo. None: anything else, Pillow decides about it.
    """
    if header.colours not in (1, 3) or header.orientation != UPRIGHT:
        return None
    if header.pixels > max_pixels:
        return None
    if min_side is not None and min(header.width, header.height) >= 2 * min_side:
        return None
    check_scans(data, header, max_pixels)
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _alone(data: bytes, header: ImageHeader) -> bytes:
    match header.format:
        case "JPEG":
            return _ended(jpeg_alone(data))
        case "PNG":
            return png_alone(data)
        case _:
            return data  # Pillow reads none of what is beside the picture


def _ended(jpeg: bytes) -> bytes:
    """With the marker at the end that some writers leave out.

    What else is missing would become grey, so a file without it is decoded by a library that says
    so; one that has lost more stays as it is, and is refused.
    """
    if END in jpeg:
        return jpeg
    try:
        simplejpeg.decode_jpeg(jpeg + END, "GRAY", min_height=1, min_width=1)
    except ValueError:
        return jpeg
    return jpeg + END


def _orientation(image: Image.Image, header: ImageHeader) -> int:
    if header.format != "WEBP":
        return header.orientation
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    return exif_orientation(exif) or xmp_orientation(xmp) or UPRIGHT


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _in_bands(image, lambda band: _high_bytes(background, band))
    if image.has_transparency_data:
        return _in_bands(image, lambda band: _on(background, band))
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_bytes(background: tuple[int, int, int], image: Image.Image) -> Image.Image:
    # As Pillow does for 16-bit colour; its own conversion of 16-bit greyscale clips.
    values = np.asarray(image)
    high = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in image.info:
        high[values == image.info["transparency"]] = background
    return Image.fromarray(high)


def _on(background: tuple[int, int, int], image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    under = Image.new("RGBA", layer.size, background)
    return Image.alpha_composite(under, layer).convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """``convert(image)``, by and by."""
    width, height = image.size
    rows = max(_BAND_PIXELS // width, 1)
    if rows >= height:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        whole.paste(convert(image.crop(box)), box)
    return whole
