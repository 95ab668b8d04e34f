"""The routes beside /classify."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest

from models import PRODUCT
from models.bundle.folder import Bundle
from tests.contract.hosts import Host
from tests.contract.problem import assert_problem
from tests.contract.process import PNG, wait_for


def test_budgets_list_what_may_be_asked_for(client, bundle: Bundle):
    body = client.get("/budgets").json()
    assert (body["flops"]["min"], body["flops"]["max"]) == (bundle.min_flops, bundle.max_flops)
    assert body["flops"]["groups"] == list(bundle.groups)
    assert len(body["frontier"]) == len(bundle.frontier)
    assert all(row["flops"] <= row["budget_flops"] for row in body["frontier"])
    assert {"held_out_accuracy", "infer_ms"} <= body["frontier"][0].keys()
    assert body["measured_on"] == bundle.provenance.get("data")
    assert body["measured_in"] == "fp32"
    assert any("accuracy" in field for field in body["frontier"][0])
    assert body["latency_ms"]["min"] > 0
    assert body["labels"] == list(bundle.labels)
    assert body["model"]["version"] == bundle.version


def test_budgets_say_which_subnets_are_resident(client, bundle: Bundle):
    """All of them, a while after the start: they are built before anybody asks."""
    wanted = {bundle.space.arch_id(arch) for arch in bundle.archs()}
    wait_for(lambda: set(client.get("/budgets").json()["resident"]) == wanted)


def test_subnets_can_be_looked_at_and_downloaded(client, bundle: Bundle, png):
    headers = {**PNG, "FLOPs-Budget": "1M"}
    subnet = client.post("/classify", content=png, headers=headers).json()["subnet"]
    described = client.get(f"/subnets/{subnet['id']}").json()
    assert described["arch"] == subnet["arch"]
    assert described["flops"] == subnet["flops"]
    download = client.get(f"/subnets/{subnet['id']}", params={"format": "onnx"})
    assert download.headers["content-type"] == "application/octet-stream"
    model = onnx.load_model_from_string(download.content)
    onnx.checker.check_model(model)
    side = described["resolution"]
    session = onnxruntime.InferenceSession(download.content)
    (logits,) = session.run(None, {"images": np.zeros((3, 3, side, side), np.float32)})
    assert np.asarray(logits).shape == (3, len(bundle.labels))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/subnets/unknown", 404),
        ("/nothing", 404),
        ("/classify", 405),
        ("/admin/reload", 405),
        ("/subnets/unknown?format=exe", 400),
    ],
)
def test_what_is_not_there_is_a_problem(client, path, status):
    response = client.get(path)
    assert_problem(response, status)
    if status == 405:
        assert "POST" in response.headers["allow"]


def test_health(client):
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["runtime"]["provider"] == "CPUExecutionProvider"


def test_request_ids_come_back_or_are_made(client, png):
    for sent in ("abc-1", "0123456789"):
        answer = client.post("/classify", content=png, headers={**PNG, "Request-Id": sent})
        assert answer.headers["Request-Id"] == answer.json()["request_id"] == sent
    made = {client.get("/livez").headers["Request-Id"] for _ in range(3)}
    assert len(made) == 3
    assert client.get("/livez", headers={"Request-Id": "a b\tc" * 99}).headers["Request-Id"]


def test_openapi_names_every_body_budget_and_error(client):
    document = client.get("/openapi.json").json()
    (server,) = document["servers"]
    assert urljoin("http://there/prefix/openapi.json", server["url"]) == "http://there/prefix/"
    operation = document["paths"]["/classify"]["post"]
    bodies = set(operation["requestBody"]["content"])
    assert {"image/jpeg", "multipart/form-data", "application/json"} <= bodies
    named = {one["name"] for one in operation["parameters"]}
    assert {"FLOPs-Budget", "Latency-Budget", "top_k"} <= named
    errors = {"400", "401", "413", "415", "422", "429", "503", "504"}
    assert {"200", *errors} <= set(operation["responses"])
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"] == {"image": {"type": "string", "format": "binary"}}  # a file
    for path, method, statuses in (
        ("/admin/reload", "post", {"400", "408", "409", "413", "415", "422", "429", "500", "503"}),
        ("/budgets", "get", {"401", "503"}),
        ("/subnets/{id}", "get", {"400", "404", "503"}),
    ):
        assert statuses <= set(document["paths"][path][method]["responses"]), path
    for path, methods in document["paths"].items():  # where a key is asked for, which
        for one in methods.values():
            assert ("401" in one["responses"]) == ("security" in one), path


def test_docs_are_ours_and_need_no_network(client):
    page = client.get("/docs")
    assert page.status_code == 200
    (title,) = re.findall(r"<title>(.*?)</title>", page.text, re.DOTALL)
    assert "ShiftNAS" in title
    assert "FastAPI" not in page.text
    loaded = re.findall(r"""(?:src|href)=["']([^"'#]+)["']""", page.text)
    for address in loaded:
        assert not re.match(r"(https?:)?//", address), address
        if not address.startswith("data:"):
            assert client.get(address).status_code == 200, address
    assert "fonts.googleapis" not in page.text
    assert "cdn." not in page.text


def test_there_is_nothing_of_the_hosts_own(client, host: Host):
    page = client.get("/")
    assert "ShiftNAS" in page.text
    if host.name != "ray":  # whose proxy has its own
        assert page.headers["server"] == PRODUCT.replace(" ", "/")
    for path in ("/health", "/info", "/predict", "/shutdown"):
        assert_problem(client.get(path), 404)


def metrics(client: httpx.Client) -> dict[str, float]:
    """Samples by name and labels, as they are written."""
    lines = client.get("/metrics").text.splitlines()
    samples = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def test_metrics_count_answers(client, host: Host, png):
    """Of the process that is asked: hosts with several are asked for the sum elsewhere."""
    ok = 'shiftnas_requests_total{status="200"}'
    before = metrics(client)[ok]
    for _ in range(7):
        client.post("/classify", content=png, headers=PNG)
    assert metrics(client)[ok] == before + 7
    assert metrics(client)["shiftnas_requests_in_flight"] == 0


def test_counters_of_what_has_not_happened_yet_are_0(client):
    """Or ``rate()`` would miss the first."""
    samples = metrics(client)
    for status in (200, 400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 499, 500, 503, 504):
        assert f'shiftnas_requests_total{{status="{status}"}}' in samples
    for result in ("done", "refused"):
        assert f'shiftnas_reloads_total{{result="{result}"}}' in samples
    text = client.get("/metrics").text
    for name in re.findall(r"^# TYPE (\w+) counter$", text, re.MULTILINE):
        assert any(sample.startswith(name) for sample in samples), name
    for name in re.findall(r"^# TYPE (\w+) histogram$", text, re.MULTILINE):
        assert any(sample.startswith(f"{name}_bucket") for sample in samples), name
