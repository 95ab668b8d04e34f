"""The manifests in deploy/: valid by Kubernetes' own schemas, and true to what they deploy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from models import __version__
from shiftnas_serve.http.about import about_routes
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.oip.routes import oip_routes
from shiftnas_serve.scheduling.decoders import THREADS
from shiftnas_serve.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGE = f"shiftnas-serve:{__version__}"
MANIFESTS = {
    path.name: list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
}
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
ADDED_BY_HAND = {"prometheus-adapter.yaml", "queue.yaml", "gpu.yaml"}


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
# What a process takes beside sessions and bundle, rounded up (70 MB of PSS when it is idle).
PROCESS_BYTES = 120_000_000


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda d: d["metadata"]["name"])
def test_a_replica_keeps_its_limit_of_memory_while_it_reloads(deployment):
    serve = container(deployment)
    values = {one["name"]: one["value"] for one in serve["env"] if "value" in one}
    settings = load_settings({}, environment=values)
    bundle_bytes = sum(file.stat().st_size for file in settings.bundle.iterdir())
    # what waits, and the photos that are being decoded, at most four bytes a pixel
    requests_bytes = settings.max_waiting_bytes + THREADS * 4 * settings.max_pixels
    held = settings.session_bytes + bundle_bytes
    needed = settings.processes * (PROCESS_BYTES + requests_bytes + 2 * held)
    assert needed <= in_bytes(serve["resources"]["limits"]["memory"])
    idle = settings.processes * (PROCESS_BYTES + held)
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


def served_paths() -> set[str]:
    """Of the routes that need no key."""
    state = ServerState(Settings.model_validate({}))
    return {getattr(one, "path", "") for one in [*about_routes(state), *oip_routes(state)]}


def assert_patient(serve: dict) -> None:
    """Probes that ask for what there is, and do not take a busy replica for a dead one."""
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = serve[name]
        assert probe["httpGet"]["path"] in served_paths()
        assert probe["timeoutSeconds"] >= 5
        assert probe["failureThreshold"] >= 2


@pytest.mark.parametrize("deployment", deployments(), ids=lambda d: d["metadata"]["name"])
def test_probes_are_patient(deployment):
    assert_patient(container(deployment))


def test_without_an_adapter_the_autoscaler_asks_for_nothing_that_is_missing():
    """Kubernetes does not scale down while a metric cannot be read."""
    (cpu,) = only("autoscaler.yaml")["spec"]["metrics"]
    assert cpu["resource"]["name"] == "cpu"
    target = only("autoscaler.yaml")["spec"]["scaleTargetRef"]["name"]
    assert target in {document["metadata"]["name"] for document in deployments()}


def test_the_queues_autoscaler_takes_its_place_and_asks_for_a_metric_that_there_is():
    plain, queue = only("autoscaler.yaml"), only("queue.yaml")
    pods, cpu = queue["spec"].pop("metrics")
    assert [cpu] == plain["spec"].pop("metrics")
    assert queue == plain
    name = pods["pods"]["metric"]["name"]
    source = (ROOT / "shiftnas_serve" / "metrics.py").read_text(encoding="utf-8")
    assert f'"{name}"' in source
    assert name in only("prometheus-adapter.yaml")["data"]["config.yaml"]


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


def stage(target: str) -> list[str]:
    """Instructions of one stage of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    _, _, rest = text.partition(f" AS {target}\n")
    return rest.partition("\nFROM ")[0].splitlines()


def test_the_gpu_image_runs_what_the_manifest_asks_for():
    lines, serve = stage("gpu"), container(gpu("Deployment"))
    assert serve["image"] == f"{IMAGE}-gpu"
    (variables,) = [one for one in lines if one.startswith("ENV ")]
    given = {one["name"]: one.get("value") for one in serve["env"]}
    for setting in variables.split()[1:]:
        name, _, value = setting.partition("=")
        assert given[name] == value
    assert any(f"'{pin('tensorrt', 'tensorrt-cu13')}'" in one for one in lines)
    users = [one.split()[1] for one in lines if one.startswith("USER ")]
    pod = gpu("Deployment")["spec"]["template"]["spec"]
    assert users[-1] == str(pod["securityContext"]["runAsUser"])


def pin(extra: str, package: str) -> str:
    """What pyproject.toml asks for."""
    wanted = PROJECT["optional-dependencies"][extra]
    return next(one for one in wanted if re.match(rf"{package}\b", one))


# ---------------------------------------------------------------------------- KServe, Ray


def read(path: str) -> dict:
    return yaml.safe_load((ROOT / "deploy" / path).read_text(encoding="utf-8"))


def assert_is_a_pod(spec: dict) -> None:
    """What is a pod's in a resource that Kubernetes' own schemas do not know."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_kserve_runs_the_same_container_as_kubernetes_on_the_bundle_that_it_downloads():
    runtime, service = read("kserve/runtime.yaml"), read("kserve/inference-service.yaml")
    assert_is_a_pod({"containers": runtime["spec"]["containers"]})
    (serve,) = runtime["spec"]["containers"]
    assert serve["name"] == "kserve-container"
    assert serve["image"] == IMAGE
    settings = load_settings({}, environment={one["name"]: one["value"] for one in serve["env"]})
    assert settings.bundle == Path("/mnt/models")
    assert serve["ports"] == [{"containerPort": settings.port, "protocol": "TCP"}]
    assert_patient(serve)
    other = container(only("deployment.yaml"))
    for same in ("resources",):
        assert serve[same] == other[same]
    assert serve["securityContext"].items() >= other["securityContext"].items()
    model = service["spec"]["predictor"]["model"]
    (known,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"].items() <= known.items()
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert service["spec"]["predictor"]["enableServiceLinks"] is False


def test_ray_deploys_the_same_app_on_kubernetes_and_elsewhere():
    here, cluster = read("ray/serve.yaml"), read("ray/rayservice.yaml")["spec"]
    there = yaml.safe_load(cluster["serveConfigV2"])
    assert there["applications"] == here["applications"]
    (one,) = here["applications"]
    settings = load_settings(one["args"], environment={})
    module, _, function = one["import_path"].partition(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert f"\ndef {function}(" in source
    rays = cluster["rayClusterConfig"]
    (workers,) = rays["workerGroupSpecs"]
    for group in (rays["headGroupSpec"], workers):
        assert_is_a_pod(group["template"]["spec"])
        assert group["template"]["spec"]["enableServiceLinks"] is False
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == f"{IMAGE}-ray"
    assert workers["maxReplicas"] == settings.processes
    assert container["resources"]["requests"]["cpu"] == str(settings.workers * settings.threads)
    assert rays["rayVersion"] in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert any(f"'{pin('ray', 'ray')}'" in line for line in stage("ray"))


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
