"""Host: which processes there are, how they start and how they stop. LitServe underneath.

The parent starts LitServe's manager, the workers (spawned), the HTTP processes (forked, each with a
listening socket on the one port), and waits, while its ``supervisor`` replaces what dies. To stop
(``signals``): /readyz turns 503, the HTTP processes stop listening and finish what is in flight,
then the workers go, and the parent exits with 0.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import litserve
from fastapi import FastAPI
from litserve.utils import WorkerSetupStatus

from models.bundle.folder import Bundle
from shiftnas_serve.app import complete_revision, install_routes
from shiftnas_serve.connection import Connection
from shiftnas_serve.inbox import socket_path
from shiftnas_serve.listeners import check_port, listening_sockets
from shiftnas_serve.log import adopt_litserve, configure_log
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.planner import check_budgets
from shiftnas_serve.reload import Reloader
from shiftnas_serve.revisions import Revision, Revisions
from shiftnas_serve.run_folder import RunFolder
from shiftnas_serve.runtimes import check_installed
from shiftnas_serve.settings import Settings
from shiftnas_serve.signals import CLOSING_S, obey_signals, obey_the_parent_alone
from shiftnas_serve.status import set_stopping
from shiftnas_serve.subnets import Downloads
from shiftnas_serve.supervisor import Kept, Supervisor
from shiftnas_serve.worker_process import ClassifyApi

_START_POLL_S = 0.05
# An HTTP process is heard of twice a second.
_SILENT_S = 1.5
_PHOTO = "docs/images/ship.jpg"
_KEEP_ALIVE_S = 75
"""Longer than balancers and clients keep an idle connection (60 s): the one that closes first must
not be the one that is asked, or a request that is on its way is lost."""


class Host(litserve.LitServer):
    """LitServe with our routes in place of its own."""

    def __init__(self, settings: Settings, files: RunFolder) -> None:
        # an explicit accelerator: "auto" would import torch to look for a GPU
        super().__init__(
            ClassifyApi(settings, files.path),
            accelerator="cpu",
            workers_per_device=settings.workers,
            timeout=settings.timeout_s,
            restart_workers=True,
        )
        self.uvicorn_graceful_timeout = int(settings.timeout_s) + 1
        self._files, self._sockets = files, list[socket.socket]()
        self._own_socket: socket.socket | None = None  # of the HTTP process that is forked next
        self._http: dict[int, Kept] = {}
        self._supervisor = Supervisor(settings.stall_s, self._give_up)
        self.failure: str | None = None
        """Why the server ended, where nobody told it to."""
        self._metrics = Metrics(files.metrics)
        self._metrics.open()

        downloads = Downloads()

        def complete(revision: Revision) -> None:
            complete_revision(revision, self._revisions, downloads)

        self._revisions = Revisions(files, settings, self._metrics, complete)
        self._reloader = Reloader(files, self._revisions, settings, self._metrics)
        self.app: Any = install_routes(
            self.app, self._revisions, self._reloader, self._metrics, settings
        )

    def _register_api_endpoints(
        self, lit_api: litserve.LitAPI, request_type: object, response_type: object
    ) -> None:
        """LitServe's own POST /classify waits without end; ``app.install_routes`` has ours."""

    def _init_manager(self, num_api_servers: int) -> Any:
        """The first step of ``run`` after it has set up its log, so the place to undo that."""
        adopt_litserve()
        return super()._init_manager(num_api_servers)

    def verify_worker_status(self) -> None:
        """Wait for a worker. Raises RuntimeError where one could not start, or died meanwhile."""
        status: Any = self.workers_setup_status
        while WorkerSetupStatus.READY not in (found := status.values()):
            dead = not all(one.is_alive() for one in self.inference_workers)
            if dead or WorkerSetupStatus.ERROR in found:
                for one in self.inference_workers:  # the others would be waited for
                    one.terminate()
                raise RuntimeError("a worker could not start")
            time.sleep(_START_POLL_S)

    def _start_server(
        self,
        port: int,
        num_uvicorn_servers: int,
        log_level: str,
        sockets: list[socket.socket],
        uvicorn_worker_type: str,
        **named: Any,
    ) -> dict[int, Any]:
        """Start the HTTP processes, each with a socket of its own."""
        # They stay open here, so clients that come while one is replaced wait and are served.
        self._sockets = listening_sockets(sockets[0], num_uvicorn_servers)
        processes: dict[int, Any] = {}

        def start(number: int) -> Any:
            make = super(Host, self)._start_server
            self._own_socket = own = self._sockets[number]
            made = make(port, 1, log_level, [own], uvicorn_worker_type, **named)
            processes[number] = made[0]
            return made[0]

        for number in range(num_uvicorn_servers):
            self._http[number] = Kept(
                f"HTTP process {number}",
                start(number),
                partial(start, number),
                lambda process: self._files.has_served(process.pid),
                self._lost_http,
                lambda process: self._files.silence_s(process.pid) > _SILENT_S,
            )
        return processes

    def _start_worker_monitoring(self, manager: object, uvicorn_workers: object) -> None:
        """Not LitServe's own, which ends at the first error, and asks its manager all the time."""
        (lit_api,) = self.litapi_connector

        def start(number: int) -> Any:
            process = self.launch_single_inference_worker(lit_api, number)
            self.inference_workers[number] = process
            return process

        def is_ready(number: int, process: object) -> bool:
            status: Any = self.workers_setup_status
            return status[f"classify_{number}"] == WorkerSetupStatus.READY

        workers = [
            Kept(
                f"worker {number}",
                process,
                partial(start, number),
                partial(is_ready, number),
                lambda process: self._metrics.worker_losses.inc(),
            )
            for number, process in enumerate(self.inference_workers)
        ]
        # In one thread: no process is forked while another counts, whose lock would stay taken.
        self._supervisor.start([*self._http.values(), *workers])

    def _lost_http(self, process: Any) -> None:
        self._files.forget_member(process.pid)
        self._metrics.forget_process(process.pid)
        self._metrics.http_losses.inc()

    def http_pids(self) -> Iterable[int]:
        """Of the HTTP processes that run."""
        processes = [one.process for one in self._http.values()]
        return [one.pid for one in processes if one is not None and one.is_alive()]

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)

    def _perform_graceful_shutdown(
        self, manager: Any, uvicorn_workers: dict[Any, Any], shutdown_reason: str = "normal"
    ) -> None:
        """Nothing is replaced from here on, and LitServe need only end what is left."""
        self._supervisor.stop()
        set_stopping(self._files.path)
        for listening in self._sockets:
            listening.close()  # or clients would wait for an answer here that no one gives
        # All at once: LitServe waits for each before it tells the next.
        for process in uvicorn_workers.values():
            process.terminate()
        for process in uvicorn_workers.values():
            process.join(self.uvicorn_graceful_timeout + CLOSING_S)
        left = {number: one for number, one in uvicorn_workers.items() if one.is_alive()}
        super()._perform_graceful_shutdown(manager, left, shutdown_reason)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Not LitServe's own, which reads a queue of answers that this server does not use."""
        obey_the_parent_alone(self._files.path, self._revisions.drain)
        self._metrics.open()
        for other in self._sockets:
            if other is not self._own_socket:
                other.close()  # or clients would wait there for a process that has ended
        await self._revisions.start()
        self._reloader.listen_to_the_parent()
        gc.collect()
        gc.freeze()  # what is here now stays; collections need not look at it again
        yield
        await self._revisions.stop()


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises ValueError for what can be known to fail beforehand."""
    check_installed(settings.runtime)
    with tempfile.TemporaryDirectory(prefix="shiftnas-") as name:
        folder = Path(name)
        socket_path(folder, settings.workers)
        files = RunFolder(folder)
        bundle = files.create(settings.bundle)
        check_budgets(bundle, settings)
        check_port(settings.host, settings.port)
        configure_log(settings.log_level, settings.log_format)
        host = Host(settings, files)
        _announce(bundle, settings)
        del bundle  # each worker has its own; here it would only take memory
        obey_signals(folder, settings.drain_s, host.http_pids)
        try:
            host.run(
                host=settings.host,
                port=settings.port,
                num_api_servers=settings.http_processes,
                log_level=settings.log_level,
                log_config=None,  # uvicorn's lines go where ours go
                generate_client_file=False,
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                proxy_headers=False,  # nothing here depends on who asks
                server_header=False,
                http=Connection,
                ws="none",
            )
        except KeyboardInterrupt:
            pass  # stopped while it was starting
        except (EOFError, ConnectionError):
            sys.exit("error: LitServe's manager process died, so the server stopped")
        except RuntimeError as error:
            raise ValueError(f"{error}; the reason stands above") from None
        if host.failure is not None:
            sys.exit(f"error: {host.failure}, so the server stopped")


def _announce(bundle: Bundle, settings: Settings) -> None:
    url = f"http://localhost:{settings.port}"
    photo = _PHOTO if Path(_PHOTO).is_file() else "photo.jpg"  # not there outside a checkout
    middle = (bundle.min_flops + bundle.max_flops) / 2e6
    print(
        f"{bundle.name} {bundle.version}: budgets from {bundle.min_flops / 1e6:.2f} to "
        f"{bundle.max_flops / 1e6:.2f} MFLOPs, {len(bundle.labels)} classes\n"
        f"  curl -T {photo} -H 'FLOPs-Budget: {middle:.0f}M' "
        f"{url}/classify\n"
        f"  {url}/docs   {url}/budgets   stop with Ctrl-C",
        file=sys.stderr,
        flush=True,
    )
