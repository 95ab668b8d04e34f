"""Files that are made to keep a decoder busy, or to fill the memory: refused, or done at once.

No clocks: what is counted is what a decoder is given, and how far it gets.
"""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from models.images import image as image_module
from models.images import png as png_file
from models.images.header import MAX_PIXELS, ImageError
from models.images.image import decode_image, decode_plain_jpeg, read_header
from models.images.orientation import exif_orientation, xmp_orientation
from tests.pictures import encoded, picture


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*beside: bytes, width: int = 8, height: int = 8, bits: int = 8, colour: int = 0) -> bytes:
    """A black PNG with other chunks behind its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    row_bytes = width * {0: 1, 2: 3, 4: 2, 6: 4}[colour] * bits // 8
    body = chunk(b"IDAT", zlib.compress(bytes(height * (1 + row_bytes))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(beside) + body + chunk(b"IEND")


def segment(kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, kind, 2 + len(data)) + data


def after_start(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def progressive(scans: int, side: int) -> bytes:
    """A grey progressive JPEG of so many scans that hold nothing: 43 bytes each."""
    # one code, of one bit, for the symbol 0: no change of brightness, no more of this block
    table = segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\0")
    scan = table + segment(0xDA, b"\1\1\0\0\0\0") + b"\0"
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    quantization = segment(0xDB, b"\0" + b"\1" * 64)
    return b"\xff\xd8" + quantization + frame + scan * scans + b"\xff\xd9"


def refused(data: bytes, status: int, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(data)
    assert caught.value.status == status


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What Pillow was given."""
    files: list[bytes] = []
    real = Image.open

    def keep(file: io.BytesIO, formats: tuple[str, ...]) -> Image.Image:
        files.append(file.getvalue())
        return real(file, formats=formats)

    monkeypatch.setattr(image_module.Image, "open", keep)
    return files


# --------------------------------------------------------------------------------- PNG


def test_a_png_of_a_thousand_chunks_never_reaches_pillow(opened):
    for kind in (b"prVt", b"IDAT", b"tEXt"):
        refused(png(*[chunk(kind)] * 1000), 422, "too many chunks")
    assert not opened


def test_a_long_png_may_have_as_many_chunks_as_encoders_write():
    """libpng writes a chunk for each 8 kB of it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2000, 1000, 8, 0, 0, 0, 0))
    noise = np.random.default_rng(0).integers(0, 256, (1000, 2001), dtype=np.uint8)
    noise[:, 0] = 0
    packed = zlib.compress(noise.tobytes(), 1)
    parts = (packed[at : at + 4096] for at in range(0, len(packed), 4096))
    body = b"".join(chunk(b"IDAT", part) for part in parts)
    data = b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND")
    np.testing.assert_array_equal(np.asarray(decode_image(data))[..., 0], noise[:, 1:])


def test_pillow_gets_the_chunks_of_the_picture_and_no_others(opened):
    """A profile or a text of a kilobyte inflates to a megabyte; EXIF may name its bytes often."""
    bomb = b"name\0\0" + zlib.compress(bytes(1_000_000))
    beside = [chunk(kind, bomb) for kind in (b"iCCP", b"zTXt", b"iCCP", b"eXIf", b"acTL")]
    assert decode_image(png(*beside)).size == (8, 8)
    assert opened == [png()]


def test_a_palette_and_its_transparency_are_of_the_picture():
    palette = picture().convert("P")
    seen = decode_image(encoded(palette, transparency=palette.getpixel((0, 0)), dpi=(9, 9)))
    assert seen.getpixel((0, 0)) == (255, 255, 255)
    kept = seen.getpixel((39, 39))
    assert kept == palette.convert("RGB").getpixel((39, 39))


@pytest.mark.parametrize(
    ("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)]
)
def test_the_transparent_colour_of_a_png_is_found_in_every_depth(bits, colour):
    """Pillow compares what the file says, in bits of its own, with 8 of a sample."""
    channels = {0: 1, 2: 3}[colour]
    values = {1: (0, 1), 16: (0x0164, 0x6401)}.get(bits, (1, 2))
    for clear, solid in (values, values[::-1]):
        row = "".join(f"{one:0{bits}b}" * channels for one in (clear, solid)).ljust(8, "0")
        pixels = int(row, 2).to_bytes(len(row) // 8, "big")
        header = struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        data += chunk(b"tRNS", struct.pack(">H", clear) * channels)
        data += chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND")
        seen = decode_image(data, background=(9, 8, 7))
        shade = solid >> 8 if bits == 16 else solid * 255 // (2**bits - 1)
        assert [seen.getpixel((x, 0)) for x in (0, 1)] == [(9, 8, 7), (shade,) * 3]


def test_a_png_has_one_header_and_it_comes_first(opened):
    """Pillow would take the last."""
    large = chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 5000, 8, 0, 0, 0, 0))
    refused(png(large), 422, "two headers")
    sound = png()
    refused(sound[:8] + chunk(b"tEXt", struct.pack(">II", 8, 8)) + sound[8:], 422, "first chunk")
    assert not opened


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_of_texts_that_may_hold_an_orientation_one_is_unpacked(monkeypatch, kind):
    """Also where it is broken: each may be half a megabyte before that shows."""
    bomb = zlib.compress(bytes(100_000))[:-20] + b"broken and broken again"
    name = {b"zTXt": b"Raw profile type exif\0\0", b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0"}[kind]
    unpacked = []
    real = png_file._inflated
    monkeypatch.setattr(png_file, "_inflated", lambda data: unpacked.append(data) or real(data))
    assert read_header(png(*[chunk(kind, name + bomb)] * 20)).orientation == 1
    assert len(unpacked) == 1
    assert real(bomb) == b""


def test_xmp_is_not_searched_to_its_end():
    assert xmp_orientation(bytes(1_000_000) + b'tiff:Orientation="6"') is None
    assert xmp_orientation(bytes(1000) + b'tiff:Orientation="6"') == 6


# -------------------------------------------------------------------------------- JPEG


def test_scans_over_a_large_jpeg_are_few(opened):
    refused(progressive(21, 5000), 422, "more than 20 scans")
    refused(progressive(101, 64), 422, "more than 100 scans")
    assert not opened
    assert decode_image(progressive(100, 64)).size == (64, 64)
    assert decode_image(encoded(picture(80), "JPEG", progressive=True)).size == (80, 80)


def test_the_fast_way_counts_scans_too():
    for data in (progressive(21, 5000), progressive(101, 64)):
        with pytest.raises(ImageError, match="scans"):
            decode_plain_jpeg(data, read_header(data), None, MAX_PIXELS)


def test_what_follows_a_progressive_jpeg_holds_no_scans_of_it():
    """Phones put a film behind a picture, and thumbnails before it."""
    film = b"\xff\xda" * 500
    data = encoded(picture(), "JPEG", progressive=True)
    seen = decode_image(after_start(data, segment(0xE5, film)) + film)
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(decode_image(data)))


@pytest.mark.parametrize("hidden", [b"\xff\xd3", b"\xff\x02", b"\xff\xff", b"\0\0", b"\xff\0"])
def test_scans_cannot_hide_behind_what_libjpeg_passes_over(hidden):
    first, *more = progressive(101, 64).split(b"\xff\xda")
    scans = [scan.replace(b"\xff\xc4", hidden + b"\xff\xc4") for scan in more]
    refused(b"\xff\xda".join((first, *scans)), 422, "scans")


def test_a_baseline_jpeg_of_several_scans_counts_as_such():
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xda")
    assert read_header(bytes(data)).scans_at == 0
    data[at + 4] = 1
    assert read_header(bytes(data)).scans_at == at


@pytest.mark.parametrize(
    "junk",
    [
        segment(0xFE) * 1000,
        segment(0xE1) * 1000,
        b"\xff" * 100_000,
        b"\xff\xd0" * 1000,
        segment(0xFE) + bytes(9999),
        (segment(0xFE) + bytes(99)) * 50,
    ],
    ids=["comments", "data", "fill", "restarts", "zeros", "many zeros"],
)
def test_a_jpeg_of_nothing_but_markers_never_reaches_a_decoder(opened, junk):
    refused(after_start(encoded(picture(), "JPEG"), junk), 422, "too many|no marker")
    assert not opened


def test_a_little_between_segments_does_no_harm():
    data = encoded(picture(), "JPEG")
    seen = decode_image(after_start(data, b"\xff" * 1000, segment(0xFE) * 10, b"\xff\xff"))
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(decode_image(data)))


def test_pillow_gets_the_segments_of_the_picture_and_no_others(opened):
    data = encoded(picture(), "JPEG")
    beside = [segment(0xE1, b"Exif\0\0" + bytes(60_000)), segment(0xE2), segment(0xFE, b"words")]
    decode_image(after_start(data, *beside))
    assert opened == [data]


@pytest.mark.parametrize("frame", [0xC3, 0xC9, 0xCA])
def test_rare_kinds_of_jpeg_are_refused_by_name(frame):
    """Of arithmetic coding a few bytes are as much work as one likes."""
    data = encoded(picture(), "JPEG").replace(b"\xff\xc0", bytes((0xFF, frame)))
    refused(data, 422, f"rare kind .frame {frame:X}.")


def test_a_jpeg_has_one_frame():
    data = encoded(picture(), "JPEG")
    refused(after_start(data, segment(0xC0, b"\x08\0\x08\0\x08\1\1\x11\0")), 422, "two frames")


@pytest.mark.parametrize("side", [8, 60_000])
def test_a_jpeg_without_colours_is_damaged_whatever_its_size(opened, side):
    """A large one of several scans may have the fewer pixels, the more colours it has."""
    frame = segment(0xC0, struct.pack(">BHHB", 8, side, side, 0))
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + bytes(10)
    refused(b"\xff\xd8" + frame + scan + b"\xff\xd9", 422, "no colours")
    assert not opened


def test_colours_of_a_jpeg_without_jfif_are_as_pillow_reads_them():
    rgb = encoded(picture(), "JPEG", keep_rgb=True, quality=95)
    header = read_header(rgb)
    seen = decode_plain_jpeg(rgb, header, None, MAX_PIXELS)
    with Image.open(io.BytesIO(rgb)) as wanted:
        np.testing.assert_array_equal(seen, np.asarray(wanted))


# -------------------------------------------------------------------------------- WebP


def test_a_webp_says_how_large_it_is_before_memory_is_taken_for_it(opened):
    kinds = {
        "lossy": encoded(picture(33), "WEBP"),
        "lossless": encoded(picture(33), "WEBP", lossless=True),
        "extended": encoded(picture(33), "WEBP", exif=Image.Exif(), icc_profile=b"profile"),
        "alpha": encoded(picture(33).convert("RGBA"), "WEBP"),
    }
    for data in kinds.values():
        header = read_header(data)
        assert (header.width, header.height) == (33, 33)
    vp8x = bytearray(kinds["extended"])
    assert vp8x[12:16] == b"VP8X"
    vp8x[24:30] = b"\xff" * 6
    refused(bytes(vp8x), 413, "16777216 x 16777216")
    vp8l = bytearray(kinds["lossless"])
    assert vp8l[12:16] == b"VP8L"
    sides = int.from_bytes(vp8l[21:25], "little")
    sides = sides >> 28 << 28 | 15999 << 14 | 15999  # each less one, in 14 bits
    vp8l[21:25] = sides.to_bytes(4, "little")
    refused(bytes(vp8l), 413, "16000 x 16000")
    assert not opened


def test_a_webp_of_more_frames_than_an_animation_has_never_reaches_libwebp(opened):
    frames = [Image.new("RGB", (1, 1), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    frame = data[data.rindex(b"ANMF") :]

    def with_more(more: bytes) -> bytes:
        return data[:4] + struct.pack("<I", len(data) + len(more) - 8) + data[8:] + more

    refused(with_more(frame * 4096), 422, "too many chunks")
    refused(with_more(b"ABCD\0\0\0\0" * 4096), 422, "too many chunks")
    assert not opened
    assert decode_image(with_more(frame * 1000)).getpixel((0, 0)) == (255, 0, 0)


# ------------------------------------------------------------------------- orientation


def exif(tag: int, value: int) -> bytes:
    block = Image.Exif()
    block[0x010F] = "a camera of ours"
    block[tag] = value
    return block.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_read_from_every_format(kind):
    lying = picture().transpose(Image.Transpose.ROTATE_90)
    options = {"lossless": True} if kind == "WEBP" else {}
    seen = decode_image(encoded(lying, kind, exif=exif(0x0112, 6), **options))
    upright = decode_image(encoded(lying, kind, **options)).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(upright))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("how", ["xmp", "raw exif"])
def test_orientation_is_read_from_the_texts_of_a_png(how, packed):
    pack: Callable[[bytes], bytes] = zlib.compress if packed else bytes
    if how == "xmp":
        text = b'<rdf:Description tiff:Orientation="8"/>'
        data = b"XML:com.adobe.xmp\0" + bytes((packed, 0)) + b"\0\0" + pack(text)
        beside = chunk(b"iTXt", data)
    else:
        digits = exif(0x0112, 8).hex().encode()
        text = b"\nexif\n%8d\n%s\n" % (len(digits) // 2, digits)
        name = b"Raw profile type exif\0"
        beside = (
            chunk(b"zTXt", name + b"\0" + pack(text)) if packed else chunk(b"tEXt", name + text)
        )
    data = png(beside, width=3, height=5)
    assert read_header(data).orientation == 8
    assert decode_image(data).size == (5, 3)


def test_orientation_of_a_jpeg_with_xmp_only():
    packet = b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>3</tiff:Orientation>"
    data = after_start(encoded(picture(), "JPEG"), segment(0xE1, packet))
    assert read_header(data).orientation == 3


def test_broken_or_endless_metadata_says_nothing():
    many = b"MM\0*" + struct.pack(">IH", 8, 0xFFFF) + struct.pack(">HHII", 1, 3, 1, 0) * 60_000
    late = many + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    whole = exif(0x0112, 6)
    for block in (b"", b"Exif\0\0", b"II*\0", late, whole[:-40], exif(0x0112, 9), exif(0x0110, 6)):
        assert exif_orientation(block) is None
    assert exif_orientation(whole) == 6
    assert exif_orientation(b"II*\0" + whole[10:]) is None
    assert xmp_orientation(b'tiff:Orientation="0"') is None
    assert xmp_orientation(b"") is None


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA", "P"])
def test_colours_are_converted_in_bands_as_they_would_be_at_once(monkeypatch, mode):
    rng = np.random.default_rng(3)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (37, 29), dtype=np.uint16))
    else:
        noise = Image.fromarray(rng.integers(0, 256, (37, 29, 4), dtype=np.uint8), "RGBA")
        image = noise.convert("RGB").convert("P") if mode == "P" else noise.convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    data = encoded(image, **options)
    at_once = np.asarray(decode_image(data, background=(1, 2, 3)))
    for pixels in (1, 100, 29 * 36):
        monkeypatch.setattr(image_module, "_BAND_PIXELS", pixels)
        seen = decode_image(data, background=(1, 2, 3))
        np.testing.assert_array_equal(np.asarray(seen), at_once)


def test_sixteen_bits_a_pixel_need_no_more_than_a_band_besides(monkeypatch):
    """numpy's memory is what is counted: once there were eight bytes for each pixel, twice."""
    data = encoded(Image.fromarray(np.zeros((1000, 1000), np.uint16)))
    monkeypatch.setattr(image_module, "_BAND_PIXELS", 50_000)
    tracemalloc.start()
    try:
        decode_image(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


# --------------------------------------------------------------- large photos, cut files


def photo(width: int, height: int, **options: object) -> bytes:
    return encoded(
        Image.linear_gradient("L").convert("RGB").resize((width, height)), "JPEG", **options
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_photo_of_48_megapixels_is_decoded_at_an_eighth_of_its_size(options):
    data = photo(8064, 6048, **options)
    assert decode_image(data, min_side=512).size == (1008, 756)
    refused(data, 413, "8064 x 6048 = 48,771,072 pixels; at most 25,000,000 are accepted")


def test_what_cannot_be_decoded_small_is_bounded_as_ever(opened):
    limit = {"min_side": 32, "max_pixels": 4000}
    whole = r"\(4,000 of a JPEG that cannot be decoded at a fraction of its size\)"
    for data, words in (
        (photo(200, 61), f"at most 12,000 are accepted {whole}"),
        # whose parts are kept
        (photo(130, 70, progressive=True), f"at most 8,000 are accepted {whole}"),
        (encoded(picture(64)), "at most 4,000 are accepted$"),
    ):
        with pytest.raises(ImageError, match=words):
            decode_image(data, **limit)
    assert not opened
    with pytest.raises(ImageError, match="at most 4,000 are accepted"):
        decode_image(photo(300, 31), **limit)  # a strip: an eighth of it would be too narrow
    assert decode_image(photo(150, 80), **limit).size == (75, 40)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("min_side", [None, 40])
def test_a_jpeg_without_its_end_marker_is_read_and_one_that_lost_more_is_not(
    mode, options, min_side
):
    whole = encoded(picture(400).convert(mode), "JPEG", **options)
    assert whole.endswith(b"\xff\xd9")
    seen = decode_image(whole[:-2], min_side=min_side)
    np.testing.assert_array_equal(seen, decode_image(whole, min_side=min_side))
    for lost in (20, len(whole) // 2):
        with pytest.raises(ImageError, match="truncated"):
            decode_image(whole[:-lost], min_side=min_side)
