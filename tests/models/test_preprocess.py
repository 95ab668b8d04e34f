"""Preprocessing: what every kind of photo becomes, and how bad bytes are refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.images.header import MAX_PIXELS, ImageError
from models.images.image import decode_image, decode_plain_jpeg, read_header, size_of
from models.images.preprocess import Preprocess

PLAIN = Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def picture(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_an_image_of_the_right_size_is_normalized_and_nothing_else():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    given = PLAIN.array(Image.fromarray(pixels), 32)
    wanted = (pixels / 255 - np.array(PLAIN.mean)) / np.array(PLAIN.std)
    # two roundings to float32, of values up to 4
    np.testing.assert_allclose(given, wanted.transpose(2, 0, 1), rtol=0, atol=1e-6)
    assert given.dtype == np.float32
    assert given.flags.c_contiguous


def test_a_batch_is_normalized_as_its_images_are():
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    batch = PLAIN.normalize(pixels)
    for image, alone in zip(pixels, batch, strict=True):
        np.testing.assert_array_equal(PLAIN.normalize(image[None])[0], alone)


def test_the_centred_square_is_what_is_seen():
    image = Image.new("RGB", (60, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    assert (PLAIN.pixels(image, 20) == (0, 0, 255)).all()
    squeezed = Preprocess(PLAIN.mean, PLAIN.std, crop_ratio=None).pixels(image, 30)
    assert (squeezed[:, 0] == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright(orientation):
    image = picture()
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image if back is None else image.transpose(back)
    seen = decode_image(encoded(stored, exif=exif))
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(image))


def test_transparent_pixels_show_the_background():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(clear), background=(1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9])
    data = encoded(palette, transparency=0)
    assert decode_image(data, background=(1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_16_bit_grey_keeps_its_brightness():
    """Pillow's own conversion would clip everything above 255 to white."""
    values = np.array([[0, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    seen = np.asarray(decode_image(encoded(Image.fromarray(values))))
    assert seen[0, :, 0].tolist() == [0, 0x7F, 0xFF]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_image(encoded(picture().convert(mode), kind)).mode == "RGB"


def test_a_large_jpeg_is_decoded_small_but_never_below_twice_the_target():
    data = encoded(picture(2400, 1600), "JPEG")
    image = PLAIN.decode(data, 32)
    assert 64 <= min(size_of(image)) < 400
    whole = PLAIN.pixels(decode_image(data), 32).astype(int)
    assert np.abs(PLAIN.pixels(image, 32).astype(int) - whole).mean() < 3


def plain_jpeg(data: bytes, min_side: int | None = None) -> np.ndarray | None:
    return decode_plain_jpeg(data, read_header(data), min_side, MAX_PIXELS)


def by_pillow(data: bytes, min_side: int | None = None) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if min_side is not None:
        image.draft("RGB", (min_side, min_side))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "optimize": True}])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("size", [(48, 32), (31, 57), (1, 1), (17, 200)])
def test_plain_jpegs_become_what_pillow_makes_of_them(mode, options, subsampling, size):
    image = picture(*size).convert(mode)
    data = encoded(image, "JPEG", subsampling=subsampling, **options)
    seen = plain_jpeg(data, 40)
    assert seen is not None
    np.testing.assert_array_equal(seen, by_pillow(data, 40))


@pytest.mark.parametrize("crop_ratio", [None, 0.875, 1.0])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (40, 100)])
def test_both_ways_lead_to_the_same_pixels(size, crop_ratio):
    preprocess = Preprocess(PLAIN.mean, PLAIN.std, crop_ratio)
    data = encoded(picture(*size), "JPEG")
    plain = preprocess.decode(data, 32)
    assert isinstance(plain, np.ndarray)
    seen = preprocess.pixels(plain, 32)
    np.testing.assert_array_equal(seen, preprocess.pixels(decode_image(data), 32))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_jpegs_too(data):
    file = bytearray(encoded(picture(), "JPEG"))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(2, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        seen = plain_jpeg(bytes(file))
    except ImageError:
        return
    if seen is not None:
        np.testing.assert_array_equal(seen, by_pillow(bytes(file)))


def test_pillow_decides_about_jpegs_that_are_not_plain():
    exif = Image.Exif()
    exif[0x0112] = 6
    cut = encoded(picture(), "JPEG")[:-40]
    turned, cmyk = encoded(picture(), "JPEG", exif=exif), encoded(picture().convert("CMYK"), "JPEG")
    large = encoded(picture(480, 320), "JPEG")
    for data, min_side in ((turned, None), (cmyk, None), (cut, None), (large, 160)):
        assert plain_jpeg(data, min_side) is None
    assert plain_jpeg(large, 161) is not None
    with pytest.raises(ImageError, match="153,600 pixels"):
        read_header(large, 1000)


def test_of_several_frames_the_first_counts():
    data = encoded(
        Image.new("RGB", (8, 8), "red"),
        "WEBP",
        save_all=True,
        append_images=[Image.new("RGB", (8, 8), "blue")],
        lossless=True,
    )
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_refusals_say_why():
    png = encoded(picture())
    gif = encoded(picture().convert("P"), "GIF")
    cases = [(b"", 400), (gif, 415), (b"text", 415), (png[:40], 422), (png[: len(png) // 2], 422)]
    for data, status in cases:
        with pytest.raises(ImageError) as caught:
            decode_image(data)
        assert caught.value.status == status
        assert caught.value.reason
    with pytest.raises(ImageError, match="1,536 pixels") as caught:
        decode_image(png, max_pixels=1000)
    assert caught.value.status == 413


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_damaged_files_are_read_or_refused_never_anything_else(kind, data):
    file = bytearray(encoded(picture(), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        seen = decode_image(bytes(file), max_pixels=10_000).mode
    except ImageError as error:
        seen = str(error.status)
    assert seen in ("RGB", "413", "415", "422")


def test_json_round_trip_and_named_mistakes():
    whole = Preprocess((0.1, 0.2, 0.3), (1, 2, 3), None, "bilinear", (1, 2, 3))
    assert Preprocess.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    for wrong, words in [
        ({"mean": [0, 0]}, "mean"),
        ({"std": [1, 0, 1]}, "std"),
        ({"crop_ratio": 2}, "crop_ratio"),
        ({"interpolation": "magic"}, "bicubic"),
        ({"colour": 1}, "there is no field 'colour'"),
    ]:
        with pytest.raises(ValueError, match=words):
            Preprocess.from_json({**whole.to_json(), **wrong})
