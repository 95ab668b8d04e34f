"""Host: which processes there are, how they start and how they stop. LitServe underneath.

The parent starts LitServe's manager, the workers (spawned), the HTTP processes (forked, each with a
listening socket on the one port), and waits. SIGTERM or SIGINT, to the parent alone or to all of
them: /readyz turns 503, the HTTP processes stop listening and finish what is in flight, then the
workers go, and the parent exits with 0. SIGHUP to the parent of a service: reload. A worker or HTTP
process that dies is replaced.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

import litserve
from fastapi import FastAPI

from models.bundle import Bundle
from shiftnas_serve.connection import Connection
from shiftnas_serve.inbox import socket_path
from shiftnas_serve.log import adopt_litserve, configure_log
from shiftnas_serve.planner import check_budgets
from shiftnas_serve.run_folder import RunFolder
from shiftnas_serve.runtimes import check_installed
from shiftnas_serve.settings import Settings
from shiftnas_serve.status import is_stopping, set_draining, set_stopping
from shiftnas_serve.worker_process import ClassifyApi, end_with_parent

_RESTART_POLL_S = 0.2
_IDLE_S = 1.0
# An HTTP process is heard of twice a second.
_SILENT_S = 1.5
_BACKLOG = 2048
_PHOTO = "docs/images/ship.jpg"
_KEEP_ALIVE_S = 75
"""Longer than balancers and clients keep an idle connection (60 s): the one that closes first must
not be the one that is asked, or a request that is on its way is lost."""


class Host(litserve.LitServer):
    """LitServe with our routes in place of its own."""

    def __init__(self, settings: Settings, files: RunFolder) -> None:
        from shiftnas_serve.app import complete_revision, install_routes
        from shiftnas_serve.metrics import Metrics
        from shiftnas_serve.reload import Reloader
        from shiftnas_serve.revisions import Revision, Revisions

        # an explicit accelerator: "auto" would import torch to look for a GPU
        super().__init__(
            ClassifyApi(settings, files.path),
            accelerator="cpu",
            workers_per_device=settings.workers,
            timeout=settings.timeout_s,
            restart_workers=True,
        )
        setattr(self, "monitor_internal", _RESTART_POLL_S)  # noqa: B010 (declared as an int)
        self.uvicorn_graceful_timeout = int(settings.timeout_s) + 1
        self._files, self._sockets = files, list[socket.socket]()
        self._stall_s = settings.stall_s
        self._own_socket: socket.socket | None = None  # of the HTTP process that is forked next
        self._stopping = threading.Event()
        # A process must not be forked while another thread counts: its lock would stay taken there.
        self._counting = threading.Lock()
        self._metrics = Metrics()
        self._metrics.reserve()

        def complete(revision: Revision) -> None:
            complete_revision(revision, self._revisions)

        self._revisions = Revisions(files, settings, self._metrics, complete)
        self._reloader = Reloader(files, self._revisions, settings, self._metrics)
        self.app: Any = install_routes(self.app, self._revisions, self._reloader, settings)

    def _register_api_endpoints(
        self, lit_api: litserve.LitAPI, request_type: object, response_type: object
    ) -> None:
        """LitServe's own POST /classify waits without end; ``app.install_routes`` has ours."""

    def _init_manager(self, num_api_servers: int) -> Any:
        """The first step of ``run`` after it has set up its log, so the place to undo that."""
        adopt_litserve()
        return super()._init_manager(num_api_servers)

    def _start_server(
        self,
        port: int,
        num_uvicorn_servers: int,
        log_level: str,
        sockets: list[socket.socket],
        uvicorn_worker_type: str,
        **named: Any,
    ) -> dict[int, Any]:
        """Start the HTTP processes and keep them running: LitServe watches its workers only."""
        self._sockets = listening_sockets(sockets[0], num_uvicorn_servers)

        def start(number: int) -> Any:
            make = super(Host, self)._start_server
            with self._counting:
                self._own_socket = own = self._sockets[number]
                return make(port, 1, log_level, [own], uvicorn_worker_type, **named)[0]

        processes: dict[int, Any] = {n: start(n) for n in range(num_uvicorn_servers)}

        silent: dict[int, int] = {}  # looks in a row at which a process had not been heard of

        def keep() -> None:
            while not self._stopping.is_set():
                # The sockets stay open here, so clients that come meanwhile wait and are served.
                # wakes when one ends; the timeout is for the end of the server
                wait([one.sentinel for one in processes.values()], timeout=_IDLE_S)
                for number, process in processes.items():
                    # Looks are counted, not seconds: if this process stood still, too, as when a
                    # machine sleeps, nobody is to blame.
                    still = self._files.silence_s(process.pid) > _SILENT_S
                    silent[number] = silent.get(number, 0) + 1 if still else 0
                    if silent[number] * _IDLE_S > self._stall_s and not self._stopping.is_set():
                        print("an HTTP process stands still; ending it", file=sys.stderr)
                        process.kill()
                        process.join()
                    if process.is_alive() or self._stopping.is_set():
                        continue
                    silent[number] = 0
                    print("an HTTP process died; starting another", file=sys.stderr, flush=True)
                    process.join()
                    self._files.forget_member(process.pid)
                    with self._counting:
                        self._metrics.forget_process(process.pid)
                        self._metrics.http_losses.inc()
                    processes[number] = start(number)

        threading.Thread(target=keep, name="keep-http", daemon=True).start()
        _pass_on_hangups(processes)
        return processes

    def launch_single_inference_worker(self, lit_api: litserve.LitAPI, worker_id: int) -> Any:
        """Start a worker in the place of one that died; counted here, where it is known once."""
        with self._counting:
            self._metrics.worker_losses.inc()
        return super().launch_single_inference_worker(lit_api, worker_id)

    def _perform_graceful_shutdown(
        self, manager: Any, uvicorn_workers: dict[Any, Any], shutdown_reason: str = "normal"
    ) -> None:
        """Let the monitor end first: it would replace the workers that are being stopped."""
        self._stopping.set()
        # In a thread of its own: this one's connection to the manager is still waiting for the
        # event, which is where the signal found it, and would never hear of the event being set.
        assert self._shutdown_event is not None
        ender = threading.Thread(target=self._shutdown_event.set, daemon=True)
        ender.start()
        ender.join(2.0)
        time.sleep(2 * _RESTART_POLL_S)
        set_stopping(self._files.path)
        for listening in self._sockets:
            listening.close()  # or clients would wait for an answer here that no one gives
        # All at once: LitServe waits for each before it tells the next.
        for process in uvicorn_workers.values():
            process.terminate()
        for process in uvicorn_workers.values():
            process.join(self.uvicorn_graceful_timeout)
        left = {number: one for number, one in uvicorn_workers.items() if one.is_alive()}
        super()._perform_graceful_shutdown(manager, left, shutdown_reason)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Not LitServe's own, which reads a queue of answers that this server does not use."""
        self._obey_the_parent_alone()
        self._metrics.reserve()
        for other in self._sockets:
            if other is not self._own_socket:
                other.close()  # or clients would wait there for a process that has ended
        await self._revisions.start()
        self._reloader.listen_to_hangups()
        gc.collect()
        gc.freeze()  # what is here now stays; collections need not look at it again
        yield
        await self._revisions.stop()

    def _obey_the_parent_alone(self) -> None:
        # Supervisors and terminals signal all processes of a service at once. The HTTP process goes
        # on until the parent has let it drain.
        for number in (signal.SIGTERM, signal.SIGINT):
            uvicorns = signal.getsignal(number)

            def stop(number: int, frame: FrameType | None, uvicorns: Any = uvicorns) -> None:
                if is_stopping(self._files.path):
                    uvicorns(number, frame)

            signal.signal(number, stop)


def listening_sockets(first: socket.socket, count: int) -> list[socket.socket]:
    """As many sockets on the address of ``first``, which is closed where it would not do alone.

    The kernel deals connections out among them. From one socket, the process that wakes first takes
    all that came at once.
    """
    if count == 1:
        return [first]
    address = first.getsockname()
    first.close()
    sockets = []
    for _ in range(count):
        one = socket.socket(first.family)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
        one.listen(_BACKLOG)  # now, so that none gets the connections of one that starts later
        sockets.append(one)
    return sockets


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises ValueError for what can be known to fail beforehand."""
    check_installed(settings.runtime)
    with tempfile.TemporaryDirectory(prefix="shiftnas-") as name:
        folder = Path(name)
        socket_path(folder, settings.workers)
        files = RunFolder(folder)
        bundle = files.create(settings.bundle)
        check_budgets(bundle, settings)
        _check_port(settings)
        metrics_folder = folder / "metrics"
        metrics_folder.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_folder)
        configure_log(settings.log_level, settings.log_format)
        host = Host(settings, files)
        _announce(bundle, settings)
        del bundle  # each worker has its own; here it would only take memory
        _stop_on_signals(folder, settings.drain_s)
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


def _stop_on_signals(folder: Path, drain_s: float) -> None:
    """LitServe stops in order on a KeyboardInterrupt, and only on that."""
    parent = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)  # once is enough; a second must not cut it short
        set_draining(folder)
        time.sleep(drain_s)
        raise KeyboardInterrupt

    def forget() -> None:
        # forked children (HTTP process, manager): Ctrl-C reaches the whole terminal, but only the
        # parent decides when they stop
        if os.getpid() != parent:
            # (so does SIGTERM where a supervisor signals all processes of a service at once; the
            # HTTP process gets uvicorn's own handler after this)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            end_with_parent(folder)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    os.register_at_fork(after_in_child=forget)


def _pass_on_hangups(http_processes: Mapping[int, Any]) -> None:
    """SIGHUP to the parent becomes one to an HTTP process, which reloads.

    Only where no terminal is: hanging up that one ends what runs in it.
    """
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in http_processes.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGHUP)
                return

    signal.signal(signal.SIGHUP, pass_on)


def _check_port(settings: Settings) -> None:
    family = socket.AF_INET6 if settings.host == "::" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
                "choose another with --port"
            ) from None


def _announce(bundle: Bundle, settings: Settings) -> None:
    address = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::") else settings.host
    url = f"http://{address}:{settings.port}"
    photo = _PHOTO if Path(_PHOTO).is_file() else "photo.jpg"  # not there outside a checkout
    middle = (bundle.min_flops + bundle.max_flops) / 2e6
    print(
        f"{bundle.name} {bundle.version}: budgets from {bundle.min_flops / 1e6:.2f} to "
        f"{bundle.max_flops / 1e6:.2f} MFLOPs, {len(bundle.labels)} classes\n"
        f"  curl -T {photo} -H 'Content-Type: image/jpeg' -H 'FLOPs-Budget: {middle:.0f}M' "
        f"{url}/classify\n"
        f"  {url}/docs   {url}/budgets   stop with Ctrl-C",
        file=sys.stderr,
        flush=True,
    )
