"""Another bundle while requests run."""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from models.bundle.folder import Bundle
from tests.contract import spoil
from tests.contract.conftest import ADMIN_KEY, API_KEYS
from tests.contract.problem import assert_problem
from tests.contract.process import PNG, Server, serving, wait_for

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
KEY = {"Authorization": f"Bearer {API_KEYS[0]}"}


def reload(server: Server, bundle: Path | None = None) -> httpx.Response:
    body = None if bundle is None else {"bundle": str(bundle)}
    with server.client() as client:
        return client.post("/admin/reload", json=body, headers=ADMIN)


def version(server: Server) -> str:
    return server.get("/readyz").json()["model"]["version"]


def test_reloads_under_load_fail_no_request_and_mix_no_answer(
    keyed: Server, bundle: Bundle, bundle_folder, other: Bundle, other_folder, png
):
    stop, seen = threading.Event(), Counter[str]()
    (said,) = re.findall(r'reloads_total{result="done"} ([\d.]+)', keyed.get("/metrics").text)
    done = float(said)
    labels = {bundle.version: set(bundle.labels), other.version: set(other.labels)}

    def load() -> None:
        with keyed.client() as client:
            while not stop.is_set():
                answer = client.post("/classify", content=png, headers={**PNG, **KEY})
                assert answer.status_code == 200, answer.text
                body = answer.json()
                given = {one["label"] for one in body["predictions"]}
                assert given <= labels[body["model"]["version"]]
                seen[body["model"]["version"]] += 1

    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        try:
            for turn in range(4):
                target, folder = ((other, other_folder), (bundle, bundle_folder))[turn % 2]
                answer = reload(keyed, folder)
                assert answer.status_code == 200, answer.text
                assert answer.json()["status"] == "reloaded"
                assert answer.json()["model"]["version"] == target.version
                # from the moment of the answer on
                after = keyed.post(png, **KEY).json()
                assert after["model"]["version"] == version(keyed) == target.version
                budgets = keyed.get("/budgets", headers=KEY).json()
                assert budgets["labels"] == list(target.labels)
                assert keyed.get("/openapi.json").json()["info"]["version"] == target.version
                infer = f"/v2/models/{target.name}/versions/{target.version}"
                assert keyed.get(f"{infer}/ready").status_code == 200
                end = seen[target.version] + 20
                wait_for(lambda: seen[target.version] >= end or any(x.done() for x in loads))  # noqa: B023
        finally:
            stop.set()
        for one in loads:
            one.result()
    assert set(seen) == set(labels)
    reloads = 'shiftnas_reloads_total{result="done"} '
    assert f"{reloads}{done + 4:.1f}" in keyed.get("/metrics").text


def test_the_same_again_is_said_to_be_unchanged(keyed: Server):
    again = reload(keyed).json()
    assert (again["status"], again["model"]) == ("unchanged", again["previous"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "JSON"),
        (lambda folder: (folder / "generator.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "supernet.safetensors").write_bytes(b"abc"), "supernet"),
        (spoil.unknown_operator, "Nonsense"),
        (spoil.weights(float("nan")), "not a number"),
        (spoil.weights(float("inf")), "not a number"),
        (lambda folder: (folder / "bundle.json").write_text("[" * 100_000), "not JSON"),
        (lambda folder: folder.rename(folder.parent / "gone"), "no such folder"),
    ],
)
def test_bad_bundles_are_refused_and_the_old_one_serves_on(
    keyed: Server, bundle_folder, tmp_path, png, damage, words
):
    before = version(keyed)
    if damage is spoil.unknown_operator or damage.__qualname__.startswith("weights"):
        bad = spoil.spoilt(bundle_folder, tmp_path / "bad", damage)
    else:
        bad = Path(shutil.copytree(bundle_folder, tmp_path / "bad"))
        damage(bad)
    assert_problem(reload(keyed, bad), 422, words)
    assert version(keyed) == before
    assert keyed.post(png, **KEY).json()["model"]["version"] == before


def test_a_path_that_cannot_be_is_refused_and_counted(keyed: Server):
    def refusals() -> str:
        return re.findall(r'reloads_total{result="refused"} (\d+)', keyed.get("/metrics").text)[0]

    before = int(refusals())
    assert_problem(reload(keyed, Path("x" * 300)), 422, "File name too long")
    assert int(refusals()) == before + 1


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"[]", b'{"bundle": 7}', b'{"bundel": "x"}', b"x" * 999),
        b'{"bundle": "one", "bundle": null}',
    ],
)
def test_what_asks_for_no_bundle_is_400(keyed: Server, body):
    answer = keyed.post(body, "/admin/reload", **ADMIN)
    assert_problem(answer, 400)


def test_a_bundle_in_the_query_is_refused(keyed: Server):
    answer = keyed.post(b"", "/admin/reload?bundle=other", **ADMIN)
    assert '{"bundle": "PATH"}' in assert_problem(answer, 400, "bundle")["detail"]


def test_a_hangup_reads_again_the_path_that_is_served(
    bundle: Bundle, bundle_folder: Path, other: Bundle, other_folder: Path, tmp_path
):
    """As a reload without a path does; what lies there is read then, and not before."""
    mine = Path(shutil.copytree(bundle_folder, tmp_path / "mine"))
    with serving(other_folder, SHIFTNAS_ADMIN_KEYS=ADMIN_KEY) as running:
        assert reload(running, mine).status_code == 200
        for file in other_folder.iterdir():
            (mine / file.name).write_bytes(file.read_bytes())
        assert version(running) == bundle.version
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: version(running) == other.version)
        for file in bundle_folder.iterdir():
            (mine / file.name).write_bytes(file.read_bytes())
        assert reload(running).status_code == 200
        assert version(running) == bundle.version
