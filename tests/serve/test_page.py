"""The page at ``/``: its files as any client gets them, and the page itself in a real browser."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from starlette.testclient import TestClient

from shiftnas_serve.app import assemble
from shiftnas_serve.http.page import STATIC
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.settings import Settings
from tests.contract.process import Server, serving
from tests.pictures import encoded, picture

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def client(**settings: object) -> TestClient:
    return TestClient(assemble(ServerState(Settings(**settings))), raise_server_exceptions=False)


# ------------------------------------------------------------------------------- without a browser


def test_nothing_on_the_page_comes_from_elsewhere_or_stands_in_the_document():
    for file in STATIC.iterdir():
        if file.suffix in (".html", ".css", ".js"):
            text = file.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
            assert "//cdn" not in text
            assert not re.search(r"https?://", text), file
            assert not re.search(r"(src|href)=\"/|url\(/", text), f"{file} is lost under a prefix"
    document = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script[^>]*>[^<]| style=| on[a-z]+=", document)


def test_the_page_may_load_its_own_files_alone_and_is_asked_for_once():
    asking = client()
    answer = asking.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for link in re.findall(r'(?:src|href)="(page/[^"]+)"', answer.text):
        assert asking.get(f"/{link}").status_code == 200, link
    again = asking.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_no_page_where_none_is_wanted():
    for path in ("/", "/page/page.js"):
        assert client(page=False).get(path).status_code == 404


# ---------------------------------------------------------------------------------- with a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # (a container's root has no sandbox)
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, request) -> Iterator[object]:
    """A tab of its own. Whatever it complains of, or asks of another server, fails the test."""
    wrong: list[str] = []
    asked: set[str] = set()
    context = browser.new_context(**getattr(request, "param", {}))
    context.set_default_timeout(60_000)
    tab = context.new_page()
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda one: wrong.append(one.text) if one.type == "error" else None)
    tab.on("request", lambda one: asked.add(urlsplit(one.url).netloc))
    yield tab
    stored = tab.evaluate("localStorage.length + sessionStorage.length + document.cookie.length")
    context.close()
    # (an answer that is no 2xx is such a complaint; what the page makes of it is tested)
    assert [one for one in wrong if "the server responded with a status of" not in one] == []
    assert len(asked - {""}) == 1, asked
    assert stored == 0


def answered(tab) -> str:
    """Waits for an answer to what is chosen now; the subnet."""
    tab.wait_for_selector("body:not(.stale) #bars li")
    return tab.text_content("#subnet")


def flops(text: str) -> float:
    number, suffix = re.findall(r"([\d.]+) ?([KMG]?)", text)[0]
    return float(number) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[suffix]


@pytest.mark.browser
def test_a_slider_moves_the_answer(page, alone: Server, bundle):
    page.goto(alone.url)
    answered(page)
    page.focus("#slider")
    page.keyboard.press("Home")
    smallest = answered(page)
    assert smallest == bundle.space.arch_id(bundle.answer(bundle.min_flops))
    page.keyboard.press("End")
    assert answered(page) == bundle.space.arch_id(bundle.answer(bundle.max_flops))
    assert flops(page.text_content("#flops")) <= 1.005 * flops(page.text_content("#asked"))
    shares = [float(one.split()[0]) for one in page.locator("#bars .share").all_text_contents()]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 5
    # every layer of the subnet, and what is dropped
    layers = alone.get(f"/subnets/{page.text_content('#subnet')}").json()["layers"]
    page.wait_for_selector(f"#layers[data-columns='{len(layers)}']")
    # milliseconds, chosen with the keyboard
    page.focus("input[value=flops]")
    page.keyboard.press("ArrowRight")
    answered(page)
    assert page.text_content("#asked").endswith(" ms")
    assert "Latency-Budget" in page.text_content("#curl")


@pytest.mark.browser
def test_a_slider_of_how_sure_it_must_be(page):
    with serving(ROOT / "models" / "zoo" / "cifar10-cnn") as sure:
        page.goto(sure.url)
        answered(page)
        pairs = sure.get("/budgets").json()["confidence"]["pairs"]
        page.focus("input[value=latency_ms]")
        page.keyboard.press("ArrowRight")
        spent = []
        for key in ("Home", "End"):
            page.focus("#slider")
            page.keyboard.press(key)
            answered(page)
            spent.append(flops(page.text_content("#flops")))
        assert page.text_content("#asked") == "99 % sure"
        assert spent[0] == pytest.approx(pairs[-1]["first_flops"], rel=0.01)
        assert spent[0] <= spent[1] <= 1.005 * pairs[-1]["budget_flops"]
        assert "of at most" in page.text_content("#hint")
        most = f"{math.ceil(pairs[-1]['budget_flops'] / 1e5) / 10}M"  # no less than the pair needs
        assert f"-H 'Confidence: 0.99' -H 'FLOPs-Budget: {most}'" in page.text_content("#curl")
        assert f'flops="{most}", confidence=0.99)' in page.text_content("#python")


@pytest.mark.browser
def test_the_lines_beside_it_give_the_same_answer(page, alone: Server, tmp_path):
    page.goto(alone.url)
    subnet = answered(page)
    done = subprocess.run(
        ["bash", "-c", page.text_content("#curl")], capture_output=True, text=True, timeout=60
    )
    assert f'"id":"{subnet}"' in done.stdout
    assert page.locator("#bars .label").first.text_content() in done.stdout
    assert page.text_content("#python").startswith("from shiftnas_serve.client import Client")


@pytest.mark.browser
def test_photos_of_ones_own(page, alone: Server, tmp_path):
    page.goto(alone.url)
    answered(page)
    photo = tmp_path / "it's mine.png"
    photo.write_bytes(encoded(picture()))
    page.set_input_files("#file", photo)
    answered(page)
    assert "-T 'it'\\''s mine.png'" in page.text_content("#curl")
    # the server's own words, and the next photo puts them away
    page.set_input_files(
        "#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no photo"}
    )
    page.wait_for_selector("#error:not([hidden])")
    detail = alone.post(b"no photo").json()["detail"]
    assert page.text_content("#error") == detail
    for event, carrier in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([event, carrier]) => new Promise((done) => {
              document.createElement("canvas").toBlob((blob) => {
                const files = new DataTransfer();
                files.items.add(new File([blob], event + ".png", {type: "image/png"}));
                const made = new Event(event, {bubbles: true, cancelable: true});
                made[carrier] = files;
                document.body.dispatchEvent(made);
                done();
              });
            })""",
            [event, carrier],
        )
        answered(page)
        assert f"{event}.png" in page.text_content("#curl")
        assert page.is_hidden("#error")


@pytest.mark.browser
def test_a_key_is_asked_for_and_kept_nowhere(page, bundle_folder):
    with serving(bundle_folder, SHIFTNAS_API_KEYS="a-schlüssel-Ω") as keyed:
        page.goto(keyed.url)
        page.wait_for_selector("#key-form:not([hidden])")
        assert "Bearer" in page.text_content("#error")
        page.fill("#key", "a-schlüssel-Ω")
        page.keyboard.press("Enter")
        answered(page)
        assert page.is_hidden("#key-form")
        assert "schlüssel" not in page.content()


@pytest.mark.browser
@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_behind_a_prefix_and_on_a_phone(page, alone: Server):
    def behind(route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/photos/app/", "/")))

    page.route("**/photos/app/**", behind)
    page.goto(f"{alone.url}/photos/app/")
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert "/photos/app/classify" in page.text_content("#curl")
    seen = Image.open(io.BytesIO(page.screenshot()))
    assert seen.size == (360, 740)
