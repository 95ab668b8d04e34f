"""POST /classify as a client sees it."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle.folder import Bundle
from models.images.image import read_header
from models.nets import build_net
from models.nets.extract import extract_folded
from shiftnas_serve.decoding import is_small
from tests.serve.conftest import RunningServer, encoded, picture

PNG = {"Content-Type": "image/png"}
JPEG = {"Content-Type": "image/jpeg"}


def classify(server: RunningServer, body: bytes, headers: dict[str, str], **named):
    return server.client.post("/classify", content=body, headers=headers, **named)


def assert_problem(response, status: int, words: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["request_id"] == response.headers["Request-Id"]
    assert words in body["detail"], body["detail"]
    return body


def test_answer_has_all_that_the_contract_names(server, bundle: Bundle, png):
    response = classify(server, png, {**PNG, "FLOPs-Budget": "0.5M", "Request-Id": "abc-1"})
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"predictions", "subnet", "budget", "model", "request_id"}
    assert len(body["predictions"]) == 5
    assert set(body["predictions"][0]) == {"label", "index", "probability"}
    assert body["subnet"]["flops"] <= 500_000
    arch = bundle.space.arch_from_json(body["subnet"]["arch"])
    assert body["subnet"]["id"] == bundle.space.arch_id(arch)
    assert body["subnet"]["params"] == bundle.space.params(arch)
    assert body["budget"] == {"flops": 500_000, "latency_ms": None, "degraded": False}
    assert body["model"] == {"name": bundle.name, "version": bundle.version}
    assert body["request_id"] == response.headers["Request-Id"] == "abc-1"
    assert response.headers["Served-FLOPs"] == str(body["subnet"]["flops"])
    timing = response.headers["Server-Timing"]
    assert all(f"{stage};dur=" in timing for stage in ("decode", "queue", "infer", "build"))


def test_probabilities_are_those_of_the_torch_subnet(server, bundle: Bundle):
    """An independent path: torch's own subnet with the bundle's weights and statistics."""
    net = build_net(bundle.space)
    net.load_state_dict({k: torch.from_numpy(np.array(w)) for k, w in bundle.weights.items()})
    image = picture(seed=3)
    for budget in (bundle.min_flops, 700_000, bundle.max_flops):
        response = classify(
            server, encoded(image), {**PNG, "FLOPs-Budget": str(budget)}, params={"top_k": 10}
        )
        body = response.json()
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


def test_all_forms_of_a_body_answer_alike(server, png):
    raw = classify(server, png, PNG).json()["predictions"]
    text = base64.b64encode(png).decode()
    answers = [
        classify(server, png, {"Content-Type": "application/octet-stream"}),
        server.client.put("/classify", content=png, headers=PNG),
        server.client.put("/classify", content=png),  # as `curl -T photo.png` sends it
        server.client.post("/classify", files={"image": ("a.png", png, "image/png")}),
        server.client.post("/classify", json={"image": text}),
        server.client.post("/classify", content=iter([png[:100], png[100:]]), headers=PNG),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == raw


@pytest.mark.parametrize(
    ("text", "flops"),
    [("1000000", 1_000_000), ("1e6", 1_000_000), ("0.9M", 900_000), ("900k", 900_000)],
)
def test_flops_budgets_as_people_write_them(server, png, text, flops):
    body = classify(server, png, {**PNG, "FLOPs-Budget": text}).json()
    assert body["budget"]["flops"] == flops
    assert body["subnet"]["flops"] <= flops


def test_no_budget_and_a_huge_one_get_the_largest_subnet(server, bundle: Bundle, png):
    for headers in (PNG, {**PNG, "FLOPs-Budget": "9G"}):
        assert classify(server, png, headers).json()["subnet"]["flops"] == bundle.max_flops


def test_a_budget_below_the_smallest_subnet_names_the_range(server, bundle: Bundle, png):
    response = classify(server, png, {**PNG, "FLOPs-Budget": "1k"})
    body = assert_problem(response, 422, "below the smallest subnet")
    assert body["allowed"] == {"min_flops": bundle.min_flops, "max_flops": bundle.max_flops}


@pytest.mark.parametrize("text", ["", "abc", "-1", "1M1", "1e6M", "nan", "inf", "0x10", "1,5M"])
@pytest.mark.parametrize("header", ["FLOPs-Budget", "Latency-Budget"])
def test_garbage_in_a_budget_is_400(server, png, header, text):
    assert_problem(classify(server, png, {**PNG, header: text}), 400, header)


def test_latency_budgets_bind_with_flops_budgets(server, bundle: Bundle, png):
    generous = classify(server, png, {**PNG, "Latency-Budget": "10000", "FLOPs-Budget": "1M"})
    body = generous.json()
    assert body["subnet"]["flops"] <= 1_000_000
    assert body["budget"] == {"flops": 1_000_000, "latency_ms": 10000, "degraded": False}
    response = classify(server, png, {**PNG, "Latency-Budget": "0.0001"})
    assert_problem(response, 422, "this server needs for the smallest subnet")


@pytest.mark.parametrize(("width", "height"), [(300, 180), (40, 5000), (900, 700)])
def test_a_latency_budget_reads_the_photo_as_a_flops_budget_does(server, width, height):
    """Small photos go to the worker as they are, since it may choose another subnet; no matter."""
    photo = encoded(picture(8).resize((width, height)))
    by_latency = classify(server, photo, {**PNG, "Latency-Budget": "20000"}).json()
    flops = str(by_latency["subnet"]["flops"])
    by_flops = classify(server, photo, {**PNG, "FLOPs-Budget": flops}).json()
    assert by_latency["subnet"] == by_flops["subnet"]
    assert by_latency["predictions"] == by_flops["predictions"]


def test_1000_unseen_budgets_are_never_exceeded(server, bundle: Bundle, png):
    rng = np.random.default_rng(0)
    budgets = rng.integers(bundle.min_flops, int(1.05 * bundle.max_flops), 1000)

    def served(budget: int) -> tuple[int, int]:
        response = classify(server, png, {**PNG, "FLOPs-Budget": str(budget)})
        assert response.status_code == 200, response.text
        return int(response.headers["Served-FLOPs"]), int(budget)

    with ThreadPoolExecutor(4) as pool:
        for flops, budget in pool.map(served, budgets):
            assert flops <= budget


def test_neighbours_of_different_budgets_keep_their_own_answers(server, bundle: Bundle):
    jobs = [(seed, budget) for seed in range(8) for budget in ("100k", "500k", "1M", "2.2M")]

    def answer(job):
        seed, budget = job
        body = encoded(picture(seed=seed))
        return classify(server, body, {**PNG, "FLOPs-Budget": budget}).json()["predictions"]

    alone = [answer(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, jobs))
    for mine, same in zip(together, alone, strict=True):
        assert [p["index"] for p in mine] == [p["index"] for p in same]
        given, wanted = ([p["probability"] for p in ps] for ps in (mine, same))
        np.testing.assert_allclose(given, wanted, atol=1e-5)


# ------------------------------------------------------------------------------ photos


def rotated_by_exif(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def test_exif_orientation_is_followed(server):
    image = picture(seed=5)
    upright = classify(server, encoded(image), PNG).json()["predictions"]
    assert classify(server, rotated_by_exif(image), PNG).json()["predictions"] == upright


def variants() -> dict[str, bytes]:
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
        "20 megapixels": encoded(Image.new("RGB", (5000, 4000), "navy"), "JPEG"),
    }


@pytest.mark.parametrize("kind", variants())
def test_photos_as_cameras_and_phones_make_them(server, kind):
    response = classify(server, variants()[kind], {"Content-Type": "application/octet-stream"})
    assert response.status_code == 200, response.text


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_bad_bodies_get_their_4xx_and_hurt_nobody(server, png):
    gif = io.BytesIO()
    picture().save(gif, "GIF")
    cases = [
        (b"", PNG, 400, "empty"),
        (png[: len(png) // 2], PNG, 422, "damaged"),
        (b"not an image at all", JPEG, 415, "not an image"),
        (gif.getvalue(), PNG, 415, "not an image"),
        (png_bomb(50_000), PNG, 413, "pixels"),
        (b"\0" * 3_000_001, PNG, 413, "larger than"),
        (png, {"Content-Type": "text/plain"}, 415, "text/plain"),
        (png, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "--data-binary"),
        (b"no type, no image", {}, 415, "not an image"),
        (b"{", {"Content-Type": "application/json"}, 400, "no JSON"),
        (b"[]", {"Content-Type": "application/json"}, 400, "object"),
        (b'{"image": "***"}', {"Content-Type": "application/json"}, 400, "base64"),
        (b'{"image": ""}', {"Content-Type": "application/json"}, 400, "empty"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "multipart"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, 400, ""),
    ]
    good = classify(server, png, PNG).json()["predictions"]
    with ThreadPoolExecutor(4) as pool:
        neighbours = [pool.submit(classify, server, png, PNG) for _ in range(20)]
        for body, headers, status, words in cases:
            assert_problem(classify(server, body, headers), status, words)
        for neighbour in neighbours:
            assert neighbour.result().json()["predictions"] == good


def test_forms_without_an_image_are_400(server, png):
    wrong = server.client.post("/classify", files={"photo": ("a.png", png)})
    assert_problem(wrong, 400, 'file field "image"')


def test_top_k(server, png):
    ask = lambda k: classify(server, png, PNG, params={"top_k": k})  # noqa: E731
    assert len(ask("1").json()["predictions"]) == 1
    everything = ask("99").json()["predictions"]
    assert len(everything) == 10
    assert sum(p["probability"] for p in everything) == pytest.approx(1)
    for wrong in ("0", "-1", "x", "1.5"):
        assert_problem(ask(wrong), 400, "top_k")


def small_file(data: bytes) -> bool:
    return is_small(read_header(data), len(data))


def test_only_what_decodes_in_a_moment_is_decoded_on_the_event_loop():
    large = Image.new("RGB", (5000, 4000), "navy")
    small = picture()
    for kind in ("PNG", "JPEG"):
        assert small_file(encoded(small, kind))
        assert not small_file(encoded(large, kind))
    assert not small_file(encoded(small, "WEBP"))
    assert not small_file(encoded(small, "JPEG", progressive=True))
    assert not small_file(encoded(small) + bytes(64_000))
    cut = encoded(large.resize((600, 600)), "JPEG")[:700]  # all of it would be filled in
    assert not small_file(cut)
