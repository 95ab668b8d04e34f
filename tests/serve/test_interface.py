"""The routes beside /classify, and the command line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import onnx
import onnxruntime
import pytest

from models.bundle.folder import Bundle
from shiftnas_serve.__main__ import parser
from shiftnas_serve.runtimes import RUNTIMES
from shiftnas_serve.settings import Settings, load_settings
from tests.serve.conftest import PNG, ROOT


def test_budgets_list_what_may_be_asked_for(server, bundle: Bundle):
    body = server.client.get("/budgets").json()
    assert body["flops"]["min"] == bundle.min_flops
    assert body["flops"]["max"] == bundle.max_flops
    assert len(body["frontier"]) == len(bundle.frontier)
    assert all(row["flops"] <= row["budget_flops"] for row in body["frontier"])
    assert body["latency_ms"]["min"] > 0


def test_subnets_can_be_looked_at_and_downloaded(server, bundle: Bundle, png):
    answer = server.client.post("/classify", content=png, headers={**PNG, "FLOPs-Budget": "1M"})
    subnet = answer.json()["subnet"]
    described = server.client.get(f"/subnets/{subnet['id']}").json()
    assert described["arch"] == subnet["arch"]
    assert described["flops"] == subnet["flops"]
    download = server.client.get(f"/subnets/{subnet['id']}", params={"format": "onnx"})
    assert download.headers["content-type"] == "application/octet-stream"
    model = onnx.load_model_from_string(download.content)
    onnx.checker.check_model(model)
    side = described["resolution"]
    session = onnxruntime.InferenceSession(download.content)
    (logits,) = session.run(None, {"images": np.zeros((3, 3, side, side), np.float32)})
    assert np.asarray(logits).shape == (3, len(bundle.labels))


@pytest.mark.parametrize(
    ("path", "status"),
    [("/subnets/unknown", 404), ("/nothing", 404), ("/classify", 405), ("/admin/reload", 405)],
)
def test_what_is_not_there_is_a_problem(server, path, status):
    response = server.client.get(path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    if status == 405:
        assert "POST" in response.headers["allow"]


def test_workers_stand_behind_http_processes(server):
    def nice(pids: set[int]) -> int:
        (pid,) = pids
        return os.getpriority(os.PRIO_PROCESS, pid)

    assert nice(server.worker_pids()) == min(nice(server.http_pids()) + 5, 19)


def test_nobody_listens_but_the_parent_and_the_http_process(server):
    """Or connections would be taken, and not answered, while the server stops."""
    port = int(server.url.rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{r[9]}]" for r in rows if r[1].endswith(f":{port:04X}") and r[3] == "0A"}
    assert listening
    holders = set()
    for pid in (server.process.pid, *server.descendants()):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(path.readlink()) in listening:
                    holders.add(pid)
    assert holders == {server.process.pid, *server.http_pids()}


def test_health_and_metrics(server, png):
    assert server.client.get("/livez").json() == {"status": "alive"}
    ready = server.client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["runtime"]["provider"] == "CPUExecutionProvider"

    def count() -> float:
        text = server.client.get("/metrics").text
        lines = [
            x for x in text.splitlines() if x.startswith('shiftnas_requests_total{status="200"')
        ]
        return float(lines[0].split()[-1]) if lines else 0.0

    before = count()
    for _ in range(7):
        server.client.post("/classify", content=png, headers=PNG)
    assert count() == before + 7
    assert "shiftnas_requests_in_flight 0.0" in server.client.get("/metrics").text


def test_openapi_names_every_body_budget_and_error(server):
    document = server.client.get("/openapi.json").json()
    operation = document["paths"]["/classify"]["post"]
    bodies = set(operation["requestBody"]["content"])
    assert {"image/jpeg", "multipart/form-data", "application/json"} <= bodies
    assert {"FLOPs-Budget", "Latency-Budget", "top_k"} <= {
        p["name"] for p in operation["parameters"]
    }
    assert {"200", "400", "401", "413", "415", "422", "429", "503", "504"} <= set(
        operation["responses"]
    )
    reload = document["paths"]["/admin/reload"]["post"]
    assert {"200", "400", "401", "403", "409", "422"} <= set(reload["responses"])
    assert reload["security"] == [{"admin_key": []}]
    for path, methods in document["paths"].items():  # where a key is asked for, which
        for one in methods.values():
            assert ("401" in one["responses"]) == ("security" in one), path
    assert server.client.get("/docs").status_code == 200


def test_an_idle_connection_is_kept_for_as_long_as_balancers_do(server):
    """uvicorn would close it after 5 s, maybe while a request is on its way."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as idle:
        for wait_s in (0, 5.5):
            time.sleep(wait_s)
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b"alive" not in answer:  # head and body may come apart
                came = idle.recv(1000)
                assert came, "the connection was closed"
                answer += came
            assert answer.startswith(b"HTTP/1.1 200")


def test_the_server_does_not_import_torch(server, png):
    server.client.post("/classify", content=png, headers=PNG)
    for pid in {server.process.pid} | server.descendants():
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in mapped, pid


def test_no_client_file_is_left_behind(server):
    assert not (ROOT / "client.py").exists()


START_EACH = """
import contextlib, io, json, sys
from shiftnas_serve.__main__ import main

def start(options):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(options)
    return status, said.getvalue()

print(json.dumps([start(options) for options in json.loads(sys.argv[1])]))
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_mistakes_on_the_command_line_are_one_line(tmp_path, bundle_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (("--bundle", str(tmp_path)), "is no bundle"),
            (("--bundle", str(bundle_folder), "--port", port), "choose another with --port"),
            (("--bundle", str(bundle_folder), "--port", "70000"), "port"),
            (("--bundle", str(bundle_folder), "--runtime", "onnx"), "onnxruntime"),
            (("--bundle", str(bundle_folder), "--default-flops", "5"), "smallest subnet"),
            (("--bundle", str(bundle_folder), "--pinned-flops", "1M,5"), "smallest subnet"),
            (("--bundle", str(bundle_folder), "--pinned-flops", "much"), "pinned_flops"),
            (("--bundle", str(bundle_folder), "--http-processes", "0"), "http_processes"),
        ]
        # in one process, since each takes its time to start; one that would serve never ends
        ended = run_python("-c", START_EACH, json.dumps([options for options, _ in cases]))
        assert ended.returncode == 0, ended.stderr
        for (options, words), (status, said) in zip(cases, json.loads(ended.stdout), strict=True):
            assert status == 2, options
            assert words in said
            assert said.startswith("error: ")
            assert said.count("\n") == 1
        ended = run_python("-m", "shiftnas_serve", "--bundle", str(tmp_path))
        assert ended.returncode == 2
        assert "is no bundle" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_settings_are_layered_and_misspellings_get_a_hint(tmp_path):
    config = tmp_path / "settings.json"
    config.write_text('{"port": 9001, "workers": 2}')
    environment = {"SHIFTNAS_PORT": "9002", "HOME": "x"}
    settings = load_settings({"threads": "3"}, config=config, environment=environment)
    assert (settings.port, settings.workers, settings.threads) == (9002, 2, 3)
    for variable, advice in (
        ("SHIFTNAS_WORKER", "did you mean SHIFTNAS_WORKERS?"),
        ("SHIFTNAS_QUUX", "unset it"),
        ("SHIFTNAS_SERVE_PORT_8000_TCP", "enableServiceLinks: false"),
    ):
        with pytest.raises(ValueError, match=f"no setting {variable};") as refused:
            load_settings({}, environment={variable: "1"})
        assert advice in str(refused.value)
        assert "--help" in str(refused.value)
    with pytest.raises(ValueError, match="enableServiceLinks: false"):
        load_settings({}, environment={"SHIFTNAS_PORT": "tcp://10.0.0.9:80"})
    config.write_text('{"prot": 1}')
    with pytest.raises(ValueError, match="did you mean 'port'"):
        load_settings({}, config=config, environment={})


def test_help_lists_what_a_setting_can_be():
    text = " ".join(parser().format_help().split())
    for allowed in (
        "--host {127.0.0.1,0.0.0.0,::}",
        "--prebuild {true,false}",
        "--log-format {text,json}",
        "--log-level {critical,error,warning,info,debug}",
        f"--runtime {{{','.join(RUNTIMES)}}}",
        "--device {cpu,cuda,tensorrt}",
    ):
        assert allowed in text
    assert "(default: true)" in text
    for name, field in Settings.model_fields.items():
        if get_origin(field.annotation) is Literal:
            for value in get_args(field.annotation):
                assert load_settings({name: value}, environment={})


def test_flops_in_settings_are_read_as_in_requests(tmp_path):
    config = tmp_path / "settings.json"
    config.write_text('{"default_flops": "4M", "pinned_flops": ["1.3G", 5000000, "4e6"]}')
    read = load_settings({}, config=config, environment={})
    assert (read.default_flops, read.pinned_flops) == (4e6, (1.3e9, 5e6, 4e6))
    read = load_settings({"default_flops": "4M", "pinned_flops": "1M, 2e6"}, environment={})
    assert (read.default_flops, read.pinned_flops) == (4e6, (1e6, 2e6))
    for name in ("default_flops", "pinned_flops"):
        with pytest.raises(ValueError, match=rf"^{name}: 'much' is no number of FLOPs; [^']*$"):
            load_settings({name: "much"}, environment={})


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
@pytest.mark.parametrize("keys", [[""], ["good", " "], [" padded"]])
def test_a_blank_key_is_none(tmp_path, name, keys):
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({name: keys}))
    with pytest.raises(ValueError, match=f"^{name}: a key is blank") as refused:
        load_settings({}, config=config, environment={})
    assert "good" not in str(refused.value)


def test_keys_are_asked_for_where_they_are_set(keyed_server, png):
    client = keyed_server.client
    for wrong in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic first-key"}):
        for path in ("/budgets", "/subnets/x"):
            assert client.get(path, headers=wrong).status_code == 401
        refused = client.post("/classify", content=png, headers={**PNG, **wrong})
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.headers["content-type"] == "application/problem+json"
    for key in ("first-key", "second-key"):
        right = {**PNG, "Authorization": f"Bearer {key}"}
        assert client.post("/classify", content=png, headers=right).status_code == 200
    assert client.get("/livez").status_code == 200


def test_budgets_say_which_subnets_are_resident(server, bundle: Bundle):
    for _ in range(100):
        resident = server.client.get("/budgets").json()["resident"]
        if len(resident) == len(bundle.archs()):
            break
        time.sleep(0.1)
    assert set(resident) == {bundle.space.arch_id(arch) for arch in bundle.archs()}
