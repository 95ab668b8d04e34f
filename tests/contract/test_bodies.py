"""The forms in which an image may come, and what is said of those in which it may not."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle.folder import Bundle
from models.nets import build_net
from models.nets.extract import extract_folded
from tests.contract.problem import assert_problem
from tests.contract.process import PNG, Server, forget_peak, peak_bytes
from tests.pictures import encoded, picture

JSON = {"Content-Type": "application/json"}


def post(client: httpx.Client, body: object, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return client.post("/classify", content=body, headers=named or PNG)


def test_probabilities_are_those_of_the_torch_subnet(client, bundle: Bundle):
    """An independent path: torch's own subnet with the bundle's weights and statistics."""
    net = build_net(bundle.space)
    net.load_state_dict({k: torch.from_numpy(np.array(w)) for k, w in bundle.weights.items()})
    image = picture(seed=3)
    for budget in (bundle.min_flops, 700_000, bundle.max_flops):
        headers = {**PNG, "FLOPs-Budget": str(budget)}
        answer = client.post("/classify?top_k=10", content=encoded(image), headers=headers)
        body = answer.json()
        arch = bundle.space.arch_from_json(body["subnet"]["arch"])
        subnet = extract_folded(net, arch, bundle.arch_statistics(arch))
        array = bundle.preprocess.array(image, bundle.space.resolution(arch))
        with torch.no_grad():
            wanted = subnet(torch.from_numpy(array)[None]).softmax(1)[0].numpy()
        given = np.zeros(10)
        for prediction in body["predictions"]:
            given[prediction["index"]] = prediction["probability"]
        np.testing.assert_allclose(given, wanted, atol=1e-4)
        assert body["predictions"][0]["index"] == int(wanted.argmax())


def test_all_forms_of_a_body_answer_alike(client, png, b64):
    raw = post(client, png).json()["predictions"]
    wrapped = "\n".join(b64[start : start + 76] for start in range(0, len(b64), 76)) + "\n"
    safe = base64.urlsafe_b64encode(png).decode()
    answers = {
        "octets": post(client, png, Content_Type="application/octet-stream"),
        "another kind of image": post(client, png, Content_Type="image/jpeg"),
        "put": client.put("/classify", content=png, headers=PNG),
        "put without a type": client.put("/classify", content=png),  # `curl -T photo.png`
        "form": client.post("/classify", files={"image": ("a.png", png, "image/png")}),
        "chunks": post(client, iter([png[:100], png[100:]])),
        "json": client.post("/classify", json={"image": b64}),
        "json with a charset": post(
            client,
            b'{"image": "%b"}' % b64.encode(),
            Content_Type="application/json; charset=utf-8",
        ),
        "lines of base64": client.post("/classify", json={"image": wrapped}),
        "lines of a mail": client.post("/classify", json={"image": wrapped.replace("\n", "\r\n")}),
        "url-safe": client.post("/classify", json={"image": safe}),
        "without its padding": client.post("/classify", json={"image": safe.rstrip("=")}),
        "data url": client.post("/classify", json={"image": f"data:image/png;base64,{b64}"}),
    }
    for form, answer in answers.items():
        assert answer.status_code == 200, f"{form}: {answer.text}"
        assert answer.json()["predictions"] == raw, form


@pytest.mark.parametrize("kind", ["image/jpg", "image/pjpeg", "IMAGE/JPEG", "image/x-png"])
def test_old_names_of_types_are_understood(client, kind):
    assert post(client, encoded(picture(), "JPEG"), Content_Type=kind).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_compressed_bodies_are_refused_by_name(client, png, coding):
    """And are not taken for images that are damaged."""
    packed = gzip.compress(png) if coding == "gzip" else png
    refused = post(client, packed, Content_Encoding=coding, **PNG)
    assert_problem(refused, 415, coding)
    assert refused.headers["Accept-Encoding"] == "identity"
    assert post(client, png, Content_Encoding="identity", **PNG).status_code == 200


def test_exif_orientation_is_followed(client):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees
    image = picture(seed=5)
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    upright = post(client, encoded(image)).json()["predictions"]
    assert post(client, turned).json()["predictions"] == upright


def photos() -> dict[str, bytes]:
    image = picture(80)
    sixteen = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return {
        "grey": encoded(image.convert("L")),
        "grey jpeg": encoded(image.convert("L"), "JPEG"),
        "palette": encoded(image.convert("P")),
        "alpha": encoded(image.convert("RGBA")),
        "grey alpha": encoded(image.convert("LA")),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "16 bit": encoded(sixteen),
        "1 bit": encoded(image.convert("1")),
        "progressive": encoded(image, "JPEG", progressive=True),
        "webp": encoded(image, "WEBP"),
        "one pixel": encoded(Image.new("RGB", (1, 1), "red")),
        "a line": encoded(Image.new("RGB", (3000, 1), "red")),
        "a jpeg without its end": encoded(image, "JPEG").removesuffix(b"\xff\xd9"),
        "a jpeg with something behind it": encoded(image, "JPEG") + bytes(100),
    }


@pytest.mark.parametrize("kind", photos())
def test_photos_as_cameras_and_phones_make_them(client, kind):
    answer = post(client, photos()[kind], Content_Type="application/octet-stream")
    assert answer.status_code == 200, answer.text


def test_the_photos_of_todays_phones_take_bounded_memory(alone: Server, png):
    """48 megapixels would be 144 MB as they are."""
    photo = encoded(Image.new("RGB", (8000, 6000), "navy"), "JPEG")
    assert alone.post(png).status_code == 200
    before = forget_peak(alone.pids())
    answer = alone.post(photo, **{"Content-Type": "image/jpeg"})
    assert answer.status_code == 200, answer.text
    assert peak_bytes(alone.pids()) < before + 80_000_000


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def gif() -> bytes:
    return encoded(picture(), "GIF")


def test_bad_bodies_get_their_4xx_and_hurt_nobody(server: Server, client, png, b64):
    cases = [
        (b"", PNG, 400, "empty"),
        (png[: len(png) // 2], PNG, 422, "damaged"),
        (b"not an image at all", PNG, 415, "not an image"),
        (gif(), PNG, 415, "not an image"),
        (png_bomb(50_000), PNG, 413, "pixels"),
        (b"\0" * 20_000_001, PNG, 413, "larger than"),
        (png, {"Content-Type": "text/plain"}, 415, "text/plain"),
        (png, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "--data-binary"),
        (b"no type, no image", {}, 415, "not an image"),
        (b"{", JSON, 400, "JSON"),
        (b"[]", JSON, 400, "object"),
        (b'{"image": 7}', JSON, 400, "image"),
        (b'{"image": "***"}', JSON, 400, "base64"),
        (b'{"image": ""}', JSON, 400, "empty"),
        (b'{"image": "%b", "image": "%b"}' % (b64.encode(), b64.encode()), JSON, 400, "image"),
        (b'{"image": ["%b"]}' % b64.encode(), JSON, 400, "image"),
        (b"[" * 100_000, JSON, 400, "JSON"),
        (b"\xff\xfe{}", JSON, 400, "JSON"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "multipart"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, 400, ""),
    ]
    good = post(client, png).json()["predictions"]
    with ThreadPoolExecutor(4) as pool:
        neighbours = [pool.submit(server.post, png) for _ in range(20)]
        for body, headers, status, words in cases:
            assert_problem(client.post("/classify", content=body, headers=headers), status, words)
        for neighbour in neighbours:
            assert neighbour.result().json()["predictions"] == good


def test_forms_with_no_image_or_two_are_400(client, png):
    assert_problem(client.post("/classify", files={"photo": ("a.png", png)}), 400, "image")
    text = client.post("/classify", data={"image": "text"}, files={"other": b"x"})
    assert_problem(text, 400, "image")
    two = client.post("/classify", files=[("image", ("a.png", png)), ("image", ("b.png", gif()))])
    assert_problem(two, 400, "one image")


def test_a_picture_in_memory_is_what_pillow_reads(client):
    """The golden answer is that of a file without loss; JPEG of best quality comes close."""
    image = picture(64, seed=9)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100, subsampling=0)
    near = post(client, file.getvalue(), Content_Type="image/jpeg").json()["predictions"]
    exact = post(client, encoded(image)).json()["predictions"]
    assert [one["index"] for one in near] == [one["index"] for one in exact]
