"""What hosts tell the app about where it runs. What they answer: tests/contract."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from shiftnas_serve.hosts import uvicorn as host_uvicorn
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import PREFIX, Settings, load_settings


@pytest.mark.parametrize("processes", [1, 2])
def test_hangups_during_a_reload_are_one_more_reload(monkeypatch, processes):
    process = host_uvicorn.Process(Settings(processes=processes))
    begun: list[bool] = []
    free = asyncio.Lock()

    async def reload(state, source, *, wait: bool = False) -> None:
        if free.locked() and not wait:
            raise Problem(409, "another reload is under way")
        async with free:
            begun.append(True)
            if len(begun) == 1:
                for _ in range(3):
                    process._hang_up()
            await asyncio.sleep(0)

    async def hang_up(times: int) -> int:
        begun.clear()
        for _ in range(times):
            process._hang_up()
        while process._tasks:
            await asyncio.gather(*process._tasks)
        return len(begun)

    monkeypatch.setattr(host_uvicorn, "reload", reload)
    monkeypatch.setattr(process.state, "engine", object())
    assert [asyncio.run(hang_up(times)) for times in (1, 5)] == [2, 2]


def test_the_port_of_several_is_closed_once_they_take_nothing_new():
    """And not when the last of them has ended what is in flight."""
    supervisor = object.__new__(host_uvicorn.Supervisor)
    listener, given_s = host_uvicorn.listen("127.0.0.1", 0), []

    def ends_later(limit_s: float | None = None) -> None:
        if limit_s is not None:
            given_s.append(limit_s)
            assert listener.fileno() >= 0
        else:
            assert listener.fileno() < 0

    one = SimpleNamespace(process=SimpleNamespace(join=ends_later), join=ends_later)
    supervisor.sockets, supervisor.processes, supervisor._drain_s = [listener], [one], 3.0
    supervisor.join_all()
    (limit_s,) = given_s
    assert 2.0 < limit_s <= 3.0


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
