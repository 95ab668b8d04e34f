"""What hosts tell the app about where it runs. What they answer: tests/contract."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shiftnas_serve.settings import PREFIX, load_settings


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_worker_of_litserve_knows_how_many_there_are(gpus, monkeypatch):
    """A reload reaches one of them only, so it is refused where there are several."""
    host = pytest.importorskip("shiftnas_serve.hosts.litserve")
    apis = []

    def server(api, **named) -> SimpleNamespace:
        apis.append(api)
        return SimpleNamespace(devices=["cuda:0", "cuda:1"][:gpus], run=lambda **more: None)

    monkeypatch.setattr(host.litserve, "LitServer", server)
    monkeypatch.setattr(host.signal, "signal", lambda *given: None)
    assert host.serve(load_settings({"processes": 3}, environment={})) == 0
    assert apis[0].settings.processes == 3 * gpus


@pytest.mark.parametrize("name", ["litserve", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_host_that_cannot_drain_says_so(name):
    host = pytest.importorskip(f"shiftnas_serve.hosts.{name}")
    build = host.application if name == "ray" else host.serve
    with pytest.raises(ValueError, match="drain_s is 5"):
        build(load_settings({"drain_s": 5}, environment={}))


@pytest.mark.slow
def test_a_replica_of_ray_knows_how_many_there_may_be(monkeypatch):
    host = pytest.importorskip("shiftnas_serve.hosts.ray")
    given = {}

    def deployment(app, **named):
        given.update(named)
        return SimpleNamespace(bind=lambda: None)

    monkeypatch.setattr(host.ray_serve, "deployment", deployment)
    host.application(load_settings({"processes": 3}, environment={}))
    environment = given["ray_actor_options"]["runtime_env"]["env_vars"]
    assert environment[f"{PREFIX}PROCESSES"] == "3"
    assert given["autoscaling_config"].max_replicas == 3
