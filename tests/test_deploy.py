"""The manifests in deploy/: valid by Kubernetes' own schemas, and true to what they deploy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from shiftnas_serve.decoding import _THREADS

from shiftnas_serve.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGE = f"shiftnas-serve:{PROJECT['version']}"
MANIFESTS = {
    path.name: list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
}
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
ADDED_BY_HAND = {"prometheus-adapter.yaml", "gpu.yaml"}


def only(name: str) -> dict:
    (document,) = MANIFESTS[name]
    return document


def container(deployment: dict) -> dict:
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    return one


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_fits_the_schema(name):
    for document in MANIFESTS[name]:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_wrong_field_would_be_refused():
    document = yaml.safe_load(yaml.safe_dump(only("deployment.yaml")))
    container(document)["readynessProbe"] = container(document).pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_names_every_manifest():
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    assert set(yaml.safe_load(text)["resources"]) == set(MANIFESTS) - ADDED_BY_HAND


def deployments() -> list[dict]:
    every = [document for documents in MANIFESTS.values() for document in documents]
    return [document for document in every if document["kind"] == "Deployment"]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda d: d["metadata"]["name"])
def test_deployments_fit_the_server(deployment):
    settings = Settings.model_validate({})
    serve = container(deployment)
    assert {"name": "http", "containerPort": settings.port} in serve["ports"]
    assert serve["image"].startswith(IMAGE)
    environment = {one["name"]: one.get("value") for one in serve["env"]}
    for name in environment:
        assert name.startswith(PREFIX)
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields, name
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    drain_s, timeout_s = (float(environment[f"{PREFIX}{n}"]) for n in ("DRAIN_S", "TIMEOUT_S"))
    assert drain_s + timeout_s < grace_s  # or what is in flight is killed
    ready_s = serve["readinessProbe"]["periodSeconds"]
    assert ready_s * serve["readinessProbe"]["failureThreshold"] < drain_s
    pod = deployment["spec"]["template"]["spec"]
    assert f"USER {pod['securityContext']['runAsUser']}" in (ROOT / "Dockerfile").read_text()


UNITS = {"Mi": 2**20, "Gi": 2**30}
# What processes take beside sessions and bundle, rounded up (PSS of an idle server: 35 + 28 + 7 MB
# for parent, manager and tracker, 46 MB for an HTTP process, 92 MB for a worker).
PARENTS_BYTES, HTTP_BYTES, WORKER_BYTES = 80_000_000, 60_000_000, 120_000_000


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda d: d["metadata"]["name"])
def test_a_replica_keeps_its_limit_of_memory_while_it_reloads(deployment):
    serve, pod = container(deployment), deployment["spec"]["template"]["spec"]
    values = {one["name"]: one["value"] for one in serve["env"] if "value" in one}
    settings = load_settings({}, environment=values)
    bundle_bytes = sum(file.stat().st_size for file in settings.bundle.iterdir())
    in_memory = [
        in_bytes(volume["emptyDir"]["sizeLimit"])
        for volume in pod["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    ]
    # what waits, and the photos that are being decoded, at most four bytes a pixel
    requests_bytes = settings.max_waiting_bytes + _THREADS * 4 * settings.max_pixels
    needed = (
        PARENTS_BYTES
        + settings.http_processes * (HTTP_BYTES + requests_bytes)
        + settings.workers * (WORKER_BYTES + 2 * (settings.session_bytes + bundle_bytes))
        + sum(in_memory)
    )
    limit = in_bytes(serve["resources"]["limits"]["memory"])
    assert needed <= limit
    idle = PARENTS_BYTES + settings.http_processes * HTTP_BYTES
    idle += settings.workers * (WORKER_BYTES + settings.session_bytes + bundle_bytes)
    assert idle <= in_bytes(serve["resources"]["requests"]["memory"])


def service_links() -> dict[str, str]:
    """What the kubelet adds to the environment of every pod, if not told otherwise."""
    every = [document for documents in MANIFESTS.values() for document in documents]
    links = {}
    for service in (document for document in every if document["kind"] == "Service"):
        name = service["metadata"]["name"].upper().replace("-", "_")
        links |= {f"{name}_SERVICE_HOST": "10.0.0.9"}
        for number, port in enumerate(service["spec"]["ports"]):
            value, url = str(port["port"]), f"tcp://10.0.0.9:{port['port']}"
            one = f"{name}_PORT_{value}_TCP"
            links |= {f"{name}_SERVICE_PORT_{port['name'].upper()}": value, one: url}
            links |= {f"{one}_PROTO": "tcp", f"{one}_PORT": value, f"{one}_ADDR": "10.0.0.9"}
            if number == 0:
                links |= {f"{name}_SERVICE_PORT": value, f"{name}_PORT": url}
    return links


@pytest.mark.parametrize("deployment", deployments(), ids=lambda d: d["metadata"]["name"])
def test_the_environment_of_a_pod_is_one_that_the_server_takes(deployment):
    pod = deployment["spec"]["template"]["spec"]
    environment = service_links() if pod.get("enableServiceLinks", True) else {}
    assert service_links()
    environment |= {
        one["name"]: one["value"] for one in container(deployment)["env"] if "value" in one
    }
    load_settings({}, environment=environment)


@pytest.mark.parametrize("deployment", deployments(), ids=lambda d: d["metadata"]["name"])
def test_probes_ask_for_routes_that_there_are(deployment):
    from shiftnas_serve import app

    source = Path(app.__file__).read_text(encoding="utf-8")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f'"{container(deployment)[probe]["httpGet"]["path"]}"' in source


def test_the_autoscaler_asks_for_a_metric_that_the_server_has():
    pods, cpu = only("autoscaler.yaml")["spec"]["metrics"]
    name = pods["pods"]["metric"]["name"]
    source = (ROOT / "shiftnas_serve" / "metrics.py").read_text(encoding="utf-8")
    assert f'"{name}"' in source
    assert name in only("prometheus-adapter.yaml")["data"]["config.yaml"]
    assert cpu["resource"]["name"] == "cpu"
    target = only("autoscaler.yaml")["spec"]["scaleTargetRef"]["name"]
    assert target in {document["metadata"]["name"] for document in deployments()}


def test_selectors_find_the_pods():
    labels = only("deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    for name, path in (
        ("service.yaml", ("spec", "selector")),
        ("disruption-budget.yaml", ("spec", "selector", "matchLabels")),
        ("network-policy.yaml", ("spec", "podSelector", "matchLabels")),
    ):
        selector = only(name)
        for key in path:
            selector = selector[key]
        assert selector.items() <= labels.items()


def gpu(kind: str) -> dict:
    (one,) = [document for document in MANIFESTS["gpu.yaml"] if document["kind"] == kind]
    return one


def test_the_gpu_replica_asks_for_a_gpu_and_keeps_its_engines():
    serve, pod = container(gpu("Deployment")), gpu("Deployment")["spec"]["template"]["spec"]
    assert serve["resources"]["limits"]["nvidia.com/gpu"] == 1
    values = {one["name"]: one["value"] for one in serve["env"] if "value" in one}
    settings = load_settings({}, environment=values)
    assert (settings.runtime, settings.device) == ("tensorrt", "cuda")
    mounts = {one["mountPath"]: one["name"] for one in serve["volumeMounts"]}
    (volume,) = [v for v in pod["volumes"] if v["name"] == mounts[str(settings.engine_cache)]]
    claim = gpu("PersistentVolumeClaim")["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert "readOnly" not in volume["persistentVolumeClaim"]
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]


def test_the_gpu_replica_is_found_by_its_own_selectors_alone():
    labels = gpu("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert gpu("Service")["spec"]["selector"].items() <= labels.items()
    selected = gpu("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= labels.items()
    others = only("deployment.yaml")["spec"]["selector"]["matchLabels"]
    assert not others.items() <= labels.items()


def test_the_gpu_image_runs_what_the_manifest_asks_for():
    text = (ROOT / "deploy" / "gpu.Dockerfile").read_text(encoding="utf-8")
    serve = container(gpu("Deployment"))
    assert f"docker build -t {serve['image']} " in text
    (line,) = [one for one in text.splitlines() if one.startswith("ENV ")]
    given = {one["name"]: one.get("value") for one in serve["env"]}
    for setting in line.split()[1:]:
        name, _, value = setting.partition("=")
        assert given[name] == value
    (pin,) = [
        one
        for one in PROJECT["optional-dependencies"]["tensorrt"]
        if one.startswith("tensorrt-cu13")
    ]
    assert f"'{pin}'" in text
    users = [one.split()[1] for one in text.splitlines() if one.startswith("USER ")]
    assert users[-1] == str(
        gpu("Deployment")["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    )


def test_compose_starts_with_what_nobody_has_set():
    given = COMPOSE["services"]["serve"]["environment"]
    unset = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in given.items()}
    assert not load_settings({}, environment=unset).api_keys


def test_compose_serves_the_image_behind_its_balancer():
    serve, balancer = COMPOSE["services"]["serve"], COMPOSE["services"]["balancer"]
    assert serve["image"] == IMAGE
    for name in serve["environment"]:
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields
    (volume,) = balancer["volumes"]
    source, target, mode = volume.split(":")
    assert (ROOT / "deploy" / source).is_file()
    assert (target, mode) == ("/etc/nginx/nginx.conf", "ro")
    port = Settings.model_validate({}).port
    conf = (ROOT / "deploy" / source).read_text(encoding="utf-8")
    assert f"server serve:{port}" in conf
    assert serve["expose"] == [str(port)]
