"""What this project relies on inside LitServe: one test per private part, so that an update says
which one moved."""

from __future__ import annotations

import asyncio
import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import litserve
import pytest
from litserve.callbacks import CallbackRunner
from litserve.loops import base as loops
from litserve.loops.loops import inference_worker
from litserve.server import LitServer, response_queue_to_buffer
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem
from starlette.routing import Route

from shiftnas_serve.host import Host
from shiftnas_serve.worker import SubnetLoop


class Transport:
    """Hands out what was sent, as LitServe's transports do between processes."""

    def __init__(self) -> None:
        self.sent: Queue[object] = Queue()

    def send(self, item: object, consumer_id: int) -> None:
        self.sent.put(item)

    async def areceive(self, consumer_id: int) -> object:
        if self.sent.empty():
            await asyncio.sleep(0.01)
            return None
        return self.sent.get()


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("_register_api_endpoints", ["self", "lit_api", "request_type", "response_type"]),
        ("_get_request_queue", ["self", "api_path"]),
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
    assert parameters(SubnetLoop.__call__) == parameters(loops._BaseLoop.__call__)
    assert "lit_api.setup(device)" in inspect.getsource(inference_worker)


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
    inference_worker(api, "cpu", 3, Queue(), Transport(), {"x": "y"}, CallbackRunner(), True)
    assert seen["id"] == "3"
    assert api.loop._restart_workers is True


class Ending(loops.LitLoop):
    """A loop that ends at once."""

    def __call__(self, *arguments: object) -> None:
        pass


def test_a_started_and_an_answered_request_reach_the_response_buffer():
    """START carries the worker's number; the answer is (data, status) and sets the event."""
    transport, api = Transport(), litserve.LitAPI()
    loop = Ending()
    loop._restart_workers = True
    loop._worker_id = 7

    async def exchange() -> ResponseBufferItem:
        item = ResponseBufferItem(asyncio.Event())
        connector = litserve.server._LitAPIConnector(api)
        pump = asyncio.create_task(response_queue_to_buffer(transport, {"uid": item}, 0, connector))
        loop.put_response(transport, 0, "uid", (), LitAPIStatus.START, LoopResponseType.REGULAR)
        end = time.monotonic() + 5
        while item.worker_id is None and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert not item.event.is_set()
        loop.put_response(transport, 0, "uid", "answer", LitAPIStatus.OK, LoopResponseType.REGULAR)
        await asyncio.wait_for(item.event.wait(), 5)
        pump.cancel()
        return item

    with ThreadPoolExecutor(1) as pool:
        item = pool.submit(asyncio.run, exchange()).result()
    assert item.worker_id == 7
    assert tuple(item.response) == ("answer", LitAPIStatus.OK)


def test_an_explicit_accelerator_imports_no_torch_and_routes_are_ours_to_add():
    class Api(litserve.LitAPI):
        pass

    server = LitServer(Api(api_path="/x"), accelerator="cpu", restart_workers=True)
    assert server.devices == ["cpu"]
    assert server.restart_workers is True
    assert server.monitor_internal > 0
    assert server.uvicorn_graceful_timeout > 0
    assert server.response_buffer == {}
    assert any(isinstance(route, Route) for route in server.app.router.routes)
