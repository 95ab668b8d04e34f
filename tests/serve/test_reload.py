"""Reloads as clients and operators see them: real processes, requests running."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest

from models.bundle.folder import Bundle, load_bundle
from models.bundle.manifest import version_of
from shiftnas_serve.answer import softmax
from shiftnas_serve.settings import DEFAULT_BUNDLE
from tests.serve.conftest import RunningServer, start_server, stop_server, wait_until_ready
from tests.serve.test_faults import metric, wait_for

PNG = {"Content-Type": "image/png"}
ADMIN = {"Authorization": "Bearer admin-key"}


@pytest.fixture(scope="module")
def other(other_folder: Path) -> Bundle:
    return load_bundle(other_folder)


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with an admin key and their folder in ``tmp_path``."""
    monkeypatch.setenv("SHIFTNAS_ADMIN_KEYS", "old-admin-key, admin-key")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    running: list[RunningServer] = []

    def start(bundle: Path, *options: str) -> RunningServer:
        running.append(start_server(bundle, *options))
        return running[-1]

    yield start
    for server in running:
        stop_server(server)


def reload(server: RunningServer, bundle: Path | None = None, **headers: str) -> httpx.Response:
    """From a connection of its own, as an operator would."""
    body = None if bundle is None else {"bundle": str(bundle)}
    with server.connect(60) as client:
        return client.post("/admin/reload", json=body, headers=ADMIN | headers)


def served_version(server: RunningServer) -> str:
    """As a new connection is told, to whichever HTTP process it goes."""
    with server.connect() as client:
        return client.get("/readyz").json()["model"]["version"]


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("shiftnas-*/bundle-*"))


class References:
    """What each version answers to an image, worked out here from its bundle alone."""

    def __init__(self, png: bytes, *bundles: Bundle) -> None:
        self.budgets = [bundles[0].min_flops * 1.05, bundles[0].max_flops]
        self._known: dict[tuple[str, float], tuple[str, dict[str, float]]] = {}
        for bundle in bundles:
            for budget in self.budgets:
                arch = bundle.answer(budget)
                side = bundle.space.resolution(arch)
                image = bundle.preprocess.decode(png, side, 10**7)
                pixels = bundle.preprocess.normalize(bundle.preprocess.pixels(image, side)[None])
                session = onnxruntime.InferenceSession(bundle.build_onnx(arch).SerializeToString())
                (logits,) = session.run(None, {"images": pixels})
                probabilities = dict(
                    zip(bundle.labels, softmax(np.asarray(logits)[0]), strict=True)
                )
                known = (bundle.space.arch_id(arch), probabilities)
                self._known[bundle.version, budget] = known

    def check(self, answer: httpx.Response, budget: float) -> str:
        """Assert that all of an answer is of the one version that it names, and answer that."""
        body = answer.json()
        version = body["model"]["version"]
        subnet, probabilities = self._known[version, budget]
        assert body["subnet"]["id"] == subnet
        assert len(body["predictions"]) == len(probabilities)
        for one in body["predictions"]:
            assert one["probability"] == pytest.approx(probabilities[one["label"]], abs=1e-4)
        return version


@contextlib.contextmanager
def load(
    server: RunningServer, references: References, png: bytes, clients: int = 3
) -> Iterator[list[str]]:
    """Requests without pause; the list grows by the version, or the failure, of each answer."""
    stop = threading.Event()
    seen: list[str] = []

    def ask(first: int) -> None:
        with server.connect(30) as client:
            for turn in range(first, 10**9):
                if stop.is_set():
                    return
                budget = references.budgets[turn % len(references.budgets)]
                headers = {**PNG, "FLOPs-Budget": str(int(budget))}
                answer = client.post("/classify?top_k=99", content=png, headers=headers)
                if answer.status_code == 200:
                    seen.append(references.check(answer, budget))
                else:
                    seen.append(f"{answer.status_code}: {answer.text}")

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, first) for first in range(clients)]
        try:
            yield seen
        finally:
            stop.set()
            for one in asking:
                one.result()


def wait_for_more(seen: list[str], number: int = 20) -> None:
    end = len(seen) + number
    wait_for(lambda: len(seen) >= end)


def test_five_reloads_under_load_fail_no_request_and_mix_no_answer(
    start, bundle, bundle_folder, other, other_folder, png, tmp_path
):
    server = start(bundle_folder, "--http-processes", "2", "--workers", "2")
    references = References(png, bundle, other)
    with contextlib.ExitStack() as stack:
        seen = stack.enter_context(load(server, references, png))
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for turn in range(5):
            wait_for_more(seen)
            target, folder = ((other, other_folder), (bundle, bundle_folder))[turn % 2]
            for one in clients:
                assert one.get("/livez").status_code == 200
            answer = reload(server, folder)
            # whichever HTTP process is asked, from the moment of the answer on
            asked = [one.get("/readyz").json() for one in clients]
            assert {one["model"]["version"] for one in asked} == {target.version}
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"]["version"] == target.version
            assert answer.json()["status"] == "reloaded"
            budgets = server.client.get("/budgets").json()
            assert budgets["model"]["version"] == target.version
            assert budgets["labels"] == list(target.labels)
            info = f'shiftnas_model_info{{name="{target.name}",version="{target.version}"}} 1.0'
            assert info in server.client.get("/metrics").text
            document = server.client.get("/openapi.json").json()
            assert document["info"]["version"] == target.version
            old = (bundle, other)[turn % 2]
            infer = server.client.post(f"/v2/models/{old.name}/versions/{old.version}/infer")
            assert infer.status_code == 404
            assert target.version in infer.json()["error"]
            model = f"/v2/models/{target.name}"
            assert server.client.get(f"{model}/versions/{target.version}/ready").json()["ready"]
            assert server.client.get(model).json()["versions"] == [target.version]
            wait_for(lambda: len(folders(tmp_path)) == 1)
    assert set(seen) == {bundle.version, other.version}
    assert metric(server, 'shiftnas_reloads_total{result="done"}') == 5
    assert metric(server, 'shiftnas_requests_total{status="200"}') == len(seen)
    # of the five that went, nothing is left: no connection, no copy
    assert folders(tmp_path) == ["bundle-6"]
    for pid in server.http_pids():
        assert len(connections(pid, tmp_path)) == 0  # named sockets are the workers' ends
    for pid in server.worker_pids():
        assert len(connections(pid, tmp_path)) == 1 + 2  # listening, and each HTTP process
    assert server.stop() == 0
    assert "Traceback" not in server.said()


def connections(pid: int, folder: Path) -> list[str]:
    """The sockets of a process that have a name in a server's folder."""
    named = {}
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[7].startswith(str(folder)):
            named[f"socket:[{fields[6]}]"] = fields[7]
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()))
    return [named[one] for one in found if one in named]


def corrupt(folder: Path) -> None:
    with (folder / "supernet.safetensors").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"abc")


def relabel(folder: Path) -> None:
    edit(folder, lambda document: document["labels"].reverse())


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = folder / "bundle.json"
    document = json.loads(manifest.read_text())
    change(document)
    manifest.write_text(json.dumps(document))


def break_graph(folder: Path) -> None:
    """A bundle that is whole, and that no runtime can run."""
    template = folder / "template.onnx"
    model = onnx.load_model(template)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Nonsense"
    template.write_bytes(model.SerializeToString())
    data = template.read_bytes()
    described = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    edit(folder, lambda document: document["files"].update({"template.onnx": described}))
    edit(folder, lambda document: document.update(version=version_of(document)))


def test_bad_bundles_are_refused_under_load_and_the_old_one_serves_on(
    start, bundle, bundle_folder, png, tmp_path
):
    server = start(bundle_folder, "--http-processes", "2", "--log-format", "json")
    cases: list[tuple[Callable[[Path], object], str]] = [
        (lambda folder: shutil.rmtree(folder), "is no bundle"),
        (lambda folder: (folder / "bundle.json").unlink(), "is no bundle"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "generator.safetensors").unlink(), "is missing"),
        (corrupt, "another SHA-256"),
        (relabel, "bundle.json was changed"),
        (break_graph, "Nonsense"),
    ]
    with load(server, References(png, bundle), png, clients=2) as seen:
        for number, (spoil, words) in enumerate(cases):
            bad = Path(shutil.copytree(bundle_folder, tmp_path / f"bad-{number}"))
            spoil(bad)
            answer = reload(server, bad, **{"Request-Id": f"bad-{number}"})
            assert answer.status_code == 422, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert words in answer.json()["detail"]
            assert "shiftnas-" not in answer.json()["detail"]  # where it lay, not our copy
            wait_for_more(seen, 5)
            assert server.client.get("/readyz").status_code == 200
    assert set(seen) == {bundle.version}
    wait_for(lambda: folders(tmp_path) == ["bundle-1"])
    lines = [json.loads(x) for x in server.said().splitlines() if x.startswith("{")]
    refused = [line for line in lines if line["event"] == "reload refused"]
    assert [line["request_id"] for line in refused] == [f"bad-{n}" for n in range(len(cases))]
    assert all(line["served"] == bundle.version and line["reason"] for line in refused)
    assert metric(server, 'shiftnas_reloads_total{result="refused"}') == len(cases)


def test_one_reload_at_a_time_and_a_worker_may_die_in_it(
    start, bundle, bundle_folder, other, other_folder, png
):
    """A frozen worker keeps a reload waiting; killed, it is replaced and the reload goes on."""
    server = start(bundle_folder, "--http-processes", "2", "--workers", "2")
    victim = min(server.worker_pids())
    with load(server, References(png, bundle, other), png) as seen, ThreadPoolExecutor(1) as pool:
        os.kill(victim, signal.SIGSTOP)
        first = pool.submit(reload, server, other_folder)
        time.sleep(1.0)
        second = reload(server, bundle_folder)
        assert second.status_code == 409
        assert "another reload" in second.json()["detail"]
        assert int(second.headers["Retry-After"]) >= 1
        assert not first.done()
        assert served_version(server) == bundle.version
        os.kill(victim, signal.SIGKILL)
        assert first.result().status_code == 200
        assert served_version(server) == other.version
        wait_for(lambda: other.version in seen[-3:])
        wait_for_more(seen)
    assert set(seen) == {bundle.version, other.version}
    assert metric(server, "shiftnas_worker_losses_total") == 1


def test_a_reload_whose_http_process_dies_changes_nothing(
    start, bundle, bundle_folder, other, other_folder, png, tmp_path
):
    server = start(bundle_folder, "--http-processes", "1", "--workers", "1")
    (worker,), (http,) = server.worker_pids(), server.http_pids()
    with ThreadPoolExecutor(1) as pool:
        os.kill(worker, signal.SIGSTOP)
        lost = pool.submit(reload, server, other_folder)
        wait_for(lambda: "bundle-2" in folders(tmp_path))
        time.sleep(0.5)
        os.kill(http, signal.SIGKILL)
        os.kill(worker, signal.SIGCONT)
        with pytest.raises(httpx.TransportError):
            lost.result()
    wait_until_ready(server)
    answer = server.client.post("/classify", content=png, headers=PNG)
    assert answer.json()["model"]["version"] == bundle.version
    assert reload(server, other_folder).json()["model"]["version"] == other.version
    assert server.client.post("/classify", content=png).json()["model"]["version"] == other.version
    wait_for(lambda: folders(tmp_path) == ["bundle-3"])


def overwrite(target: Path, source: Path) -> None:
    """In place, file by file, as a careless copy does."""
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def test_a_bundle_that_is_overwritten_is_served_only_when_it_is_reloaded(
    start, bundle, bundle_folder, other, other_folder, png, tmp_path
):
    mine = Path(shutil.copytree(bundle_folder, tmp_path / "mine"))
    middle = str((bundle.min_flops + bundle.max_flops) / 2)
    server = start(mine, "--prebuild", "no", "--pinned-flops", middle, "--log-level", "info")

    references = References(png, bundle, other)

    def version() -> str:
        """That an answer names, and is of."""
        budget = references.budgets[-1]
        headers = {**PNG, "FLOPs-Budget": str(budget)}
        answer = server.client.post("/classify?top_k=99", content=png, headers=headers)
        return references.check(answer, budget)

    overwrite(mine, other_folder)
    assert version() == bundle.version
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: server.worker_pids() not in ({worker}, set()))
    wait_until_ready(server)
    assert version() == bundle.version  # the replacement, too
    assert reload(server).json()["previous"]["version"] == bundle.version  # no body: same path
    assert version() == other.version
    # pinned subnets are there when it answers, of the new bundle
    pinned = other.space.arch_id(other.answer(float(middle)))
    assert pinned in server.client.get("/budgets").json()["resident"]
    onnx_file = server.client.get(f"/subnets/{pinned}?format=onnx")
    assert onnx.load_model_from_string(onnx_file.content).graph.output[0].name == "logits"
    again = reload(server).json()
    assert (again["status"], again["model"]) == ("unchanged", again["previous"])
    # SIGHUP to the parent does the same as no body
    overwrite(mine, bundle_folder)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: version() == bundle.version)
    assert "request_id=sighup-" in server.said()


def test_reloads_need_an_admin_key(keyed_server, other_folder):
    server = keyed_server
    body = {"bundle": str(other_folder)}
    for headers in (
        {},
        {"Authorization": "Bearer first-key"},
        {"Authorization": "Basic admin-key"},
    ):
        answer = server.client.post("/admin/reload", json=body, headers=headers)
        assert answer.status_code == 401
        assert "admin key" in answer.json()["detail"]
    refused = server.client.post("/classify", content=b"x", headers=ADMIN)
    assert refused.status_code == 401  # nor is an admin key an API key
    for content in (b"{", b"[]", b'{"path": "/x"}', b'{"bundle": 3}', b'{"bundle": ""}'):
        answer = server.client.post("/admin/reload", content=content, headers=ADMIN)
        assert answer.status_code == 400, content
    wrong = server.client.post("/admin/reload", content=b" " * 70_000, headers=ADMIN)
    assert wrong.status_code == 413
    for key in ("old-admin-key", "admin-key"):
        headers = {"Authorization": f"Bearer {key}"}
        assert server.client.post("/admin/reload", headers=headers).status_code == 200


def test_without_admin_keys_the_route_says_how_to_get_it(server):
    answer = server.client.post("/admin/reload", headers=ADMIN)
    assert answer.status_code == 403
    assert "SHIFTNAS_ADMIN_KEYS" in answer.json()["detail"]


def test_another_space_may_follow_if_the_budgets_that_are_set_allow_it(
    start, bundle, bundle_folder, png
):
    larger = load_bundle(DEFAULT_BUNDLE)
    server = start(bundle_folder, "--default-flops", str(bundle.max_flops))
    answer = reload(server, DEFAULT_BUNDLE)
    assert answer.status_code == 422
    assert "default_flops" in answer.json()["detail"]
    assert served_version(server) == bundle.version
    server = start(bundle_folder)
    assert reload(server, DEFAULT_BUNDLE).status_code == 200
    body = server.client.post("/classify", content=png, headers=PNG).json()
    assert body["model"] == {"name": larger.name, "version": larger.version}
    assert body["subnet"]["flops"] == larger.max_flops
    old_path = server.client.get(f"/v2/models/{bundle.name}")
    assert old_path.status_code == 404
    assert larger.name in old_path.json()["error"]
    versions = server.client.get(f"/v2/models/{larger.name}").json()["versions"]
    assert versions == [larger.version]


def test_memory_of_the_old_version_comes_back(start, tmp_path):
    """Most of a worker's memory is sessions: those of two versions would be twice as much."""
    relabelled = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "relabelled"))
    relabel(relabelled)
    edit(relabelled, lambda document: document.update(version=version_of(document)))
    subnets = len(load_bundle(DEFAULT_BUNDLE).archs())
    server = start(DEFAULT_BUNDLE)

    def pss_mb() -> float:
        wait_for(lambda: len(server.client.get("/budgets").json()["resident"]) == subnets, 60)
        (worker,) = server.worker_pids()
        wait_for(lambda: len(connections(worker, tmp_path)) == 2)  # the old version is gone
        lines = Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
        (pss,) = (line for line in lines if line.startswith("Pss:"))
        return int(pss.split()[1]) / 1024

    before = pss_mb()
    for bundle in (relabelled, DEFAULT_BUNDLE, relabelled):
        assert reload(server, bundle).json()["status"] == "reloaded"
    assert pss_mb() < 1.25 * before
