"""What this project relies on inside LitServe: one test per private part, so that an update says
which one moved."""

from __future__ import annotations

import inspect
from queue import Queue

import litserve
import pytest
from litserve.callbacks import CallbackRunner
from litserve.loops import base as loops
from litserve.loops.loops import inference_worker
from litserve.server import LitServer
from starlette.routing import Route

from shiftnas_serve.host import Host
from shiftnas_serve.worker_process import SubnetLoop


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("_register_api_endpoints", ["self", "lit_api", "request_type", "response_type"]),
        ("lifespan", ["self", "app"]),
        ("_init_manager", ["self", "num_api_servers"]),
        (
            "_start_server",
            [
                "self",
                "port",
                "num_uvicorn_servers",
                "log_level",
                "sockets",
                "uvicorn_worker_type",
                "kwargs",
            ],
        ),
        ("_start_worker_monitoring", ["self", "manager", "uvicorn_workers"]),
        ("verify_worker_status", ["self"]),
        ("launch_single_inference_worker", ["self", "lit_api", "worker_id"]),
    ],
)
def test_methods_that_are_overridden_or_called_take_what_we_expect(name, wanted):
    assert parameters(getattr(LitServer, name)) == wanted
    assert hasattr(Host, name)


def test_shutdown_is_one_overridable_method_called_last():
    assert "_perform_graceful_shutdown" in vars(Host)
    source = inspect.getsource(LitServer.run)
    assert "except KeyboardInterrupt" in source
    assert source.rstrip().endswith(
        "self._perform_graceful_shutdown(manager, uvicorn_workers, shutdown_reason)"
    )


def test_loops_are_called_with_what_ours_takes():
    wanted = ["self", "lit_api", "device", "worker_id", "request_queue", "transport"]
    called = parameters(loops._BaseLoop.__call__)
    assert called == [*wanted, "workers_setup_status", "callback_runner"]
    inspect.signature(SubnetLoop.__call__).bind(*called)
    assert "lit_api.setup(device)" in inspect.getsource(inference_worker)
    assert isinstance(SubnetLoop(), loops.LitLoop)


def test_the_worker_finds_its_number_in_the_environment(monkeypatch):
    """``setup`` names its status file by it."""
    seen = {}

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            import os

            seen["id"] = os.environ["LITSERVE_WORKER_ID"]

    monkeypatch.delenv("LITSERVE_WORKER_ID", raising=False)
    api = Api(loop=Ending())
    monkeypatch.setenv("LITSERVE_WORKER_ID", "to be replaced")
    inference_worker(api, "cpu", 3, Queue(), object(), {"x": "y"}, CallbackRunner(), True)
    assert seen["id"] == "3"
    assert api.loop._restart_workers is True


class Ending(loops.LitLoop):
    """A loop that ends at once."""

    def __call__(self, *arguments: object) -> None:
        pass


def test_nothing_of_litserves_own_life_span_is_needed():
    """Ours takes its place; LitServe's reads answers from a queue that stays empty here."""
    source = inspect.getsource(LitServer.lifespan)
    assert "response_queue_to_buffer" in source
    assert source.count("create_task") == 1


def test_the_listening_sockets_are_handed_to_the_start_of_the_server():
    source = inspect.getsource(LitServer.run)
    assert "sockets = [config.bind_socket()]" in source
    assert "port, num_api_servers, log_level, sockets, api_server_worker_type" in source


def test_any_asgi_app_may_stand_where_litserves_own_stood():
    """Ours has LitServe's behind it. Only a copy of it is served, and nothing else is asked of it
    when there are no tools for MCP and requests are not counted."""
    source = inspect.getsource(LitServer._start_server)
    assert "copy.copy(self.app)" in source
    assert source.count("self.app") == 3
    assert "self.app.response_queue_id = response_queue_id" in source
    assert "get_mcp_tools(), self.app" in source


def test_an_explicit_accelerator_imports_no_torch_and_routes_are_ours_to_add():
    class Api(litserve.LitAPI):
        pass

    server = LitServer(Api(api_path="/x"), accelerator="cpu", restart_workers=True)
    assert server.devices == ["cpu"]
    assert server.restart_workers is True
    assert server.uvicorn_graceful_timeout > 0
    assert any(isinstance(route, Route) for route in server.app.router.routes)
