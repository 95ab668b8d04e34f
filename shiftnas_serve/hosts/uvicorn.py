"""uvicorn: one process is a whole server; more of them are uvicorn's own supervisor's.

The port is taken first, before anything is loaded, so that of two servers on one port the second
says so and ends. Stopping (SIGTERM, SIGINT): /readyz turns 503; after ``drain_s`` nothing new is
taken; what is in flight finishes. SIGHUP reloads; it stops a server whose terminal has gone.
Several processes each reload in place: a bundle that is refused ends none of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from models import PRODUCT
from shiftnas_serve.app import App, create_app
from shiftnas_serve.http.admin import reload
from shiftnas_serve.http.connection import HttpConnection
from shiftnas_serve.http.page import PHOTO
from shiftnas_serve.library import Engine
from shiftnas_serve.log import STARTS, configure_log
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings, as_environment

_BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than balancers and clients keep an idle connection (60 s): the one that closes first must
not be the one that is asked, or a request that is on its way is lost."""
HTTP: dict[str, Any] = {
    "http": HttpConnection,
    "ws": "none",
    "headers": [("server", PRODUCT.replace(" ", "/"))],
    "server_header": False,
    "timeout_keep_alive": KEEP_ALIVE_S,
    "proxy_headers": False,
    "access_log": False,
    "log_config": None,
}
"""Settings of uvicorn, whichever host runs it."""
_LOOK_S = 0.5
_AGAIN_S = 5.0
"""Between two tries of a process that cannot load the bundle which others serve."""

_LOG = structlog.get_logger(STARTS)


def serve(settings: Settings) -> int:
    """Until it is told to stop: the exit status. Raises ValueError in one line."""
    listener = listen(settings.host, settings.port)
    configure_log(settings.log_level, settings.log_format)
    if sys.stderr.isatty():
        _greet(settings)
    if settings.processes > 1:
        os.environ |= as_environment(settings)
        config = _config(f"{__name__}:process_app", settings, factory=True)
        supervisor = Supervisor(config, [listener], settings.drain_s)
        supervisor.run()
        return 2 if any(one.exitcode == STARTUP_FAILURE for one in supervisor.processes) else 0
    process = Process(settings)
    # (uvicorn raises the signal that ended it once more)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    uvicorn.Server(_config(process, settings)).run([listener])
    if process.failure is not None:
        raise ValueError(process.failure)
    return 0


def _greet(settings: Settings) -> None:
    """What to do next, for a person; it works from any folder."""
    host = "localhost" if settings.host in ("0.0.0.0", "::", "127.0.0.1") else settings.host
    url = f"http://{address(host, settings.port)}"
    print(
        f"{url}{'/' if settings.page else '/docs'}\n"
        f"  curl -T {shlex.quote(str(PHOTO))} -H 'Latency-Budget: 100' {url}/classify",
        file=sys.stderr,
    )


def address(host: str, port: int) -> str:
    """As it stands in a URL: colons of IPv6 are not that before the port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """The one socket that takes connections. Raises ValueError where nothing can listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and host == "::"
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        # create_server says the address once more behind what the system said
        reason = (error.strerror or str(error)).partition(" (while ")[0]
        right = "choose another with --port"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            right = "choose an address of this machine with --host, or 0.0.0.0 for all of them"
        raise ValueError(f"cannot listen on {address(host, port)} ({reason}); {right}") from None


def process_app() -> App:
    """The app of one of several processes."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what it would read again is not read yet
    return create_app(Process)


def later_app() -> App:
    """The app of a process that starts when another has served already."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return create_app(Later)


class Supervisor(Multiprocess):
    """uvicorn's, whose own way to reload is to replace processes.

    It gives up on one that takes longer to load than a ping may, and it ends all where a later one
    cannot start.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], drain_s: float = 0.0
    ) -> None:
        self._drain_s = drain_s
        self._tied = tied_to_terminal()  # (then all signals are uvicorn's)
        self._served = False
        super().__init__(config, sockets)

    def keep_subprocess_alive(self) -> None:
        """As uvicorn's. From the first that serves on, who cannot start tries again."""
        # (one that has ended would be waited for)
        running = (one for one in self.processes if one.process.is_alive())
        if not self._served and any(one.is_ready() for one in running):
            self._served = True
            self.config.app = f"{__name__}:later_app"
        super().keep_subprocess_alive()

    def join_all(self) -> None:
        """Once they take nothing new, nor does the port: who comes then is to ask another."""
        end_s = time.monotonic() + self._drain_s
        for one in self.processes:
            one.process.join(max(end_s - time.monotonic(), 0.0))
        for listener in self.sockets:
            listener.close()
        super().join_all()

    def handle_hup(self) -> None:
        """Each process reloads, unless the terminal has gone."""
        if self._tied and not on_terminal():
            self.handle_term()
            return
        for one in self.processes:
            if one.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGHUP)


def _config(app: Any, settings: Settings, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        lifespan="on",
        interface="asgi3",
        log_level=None,
        timeout_graceful_shutdown=int(settings.timeout_s) + 1,
        workers=settings.processes,
        **HTTP,
        **more,
    )


def on_terminal() -> bool:
    """Whether this process reads from or writes to a terminal that has not been closed."""
    return any(map(os.isatty, range(3)))


def tied_to_terminal() -> bool:
    """Whether it ends with its terminal. Who starts a server with nohup wants it to outlive it."""
    return on_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


class Process(App):
    """An app, and what signals mean to its process, which has one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._alone = settings.processes == 1
        super().__init__(settings, waits=not self._alone)
        self._tied = self._alone and tied_to_terminal()  # else that is the parent's to know
        self._parent = os.getppid()
        self._stop: Any = None
        self._hangups = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The app; when it starts, the event loop is there for signals."""
        if scope["type"] == "lifespan":
            loop = asyncio.get_running_loop()
            self._stop = signal.getsignal(signal.SIGTERM)  # uvicorn's own, for the last step
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._drain)
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
            if not self._alone:
                self._keep(self._end_with_parent())
        await super().__call__(scope, receive, send)

    def stop(self) -> None:
        """Take nothing new; uvicorn ends with what is in flight."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, self._stop)
        self._stop(signal.SIGTERM, None)

    def loaded(self) -> None:
        engine = self.state.engine
        if engine is None:
            self.stop()
            return
        url = f"http://{address(self.settings.host, self.settings.port)}"
        version = engine.model.name.version
        _LOG.info("ready", address=url, bundle=str(engine.path), version=version)

    def _drain(self) -> None:
        if self.state.engine is None:
            logging.shutdown()
            os._exit(0)  # it has begun nothing that would have to end
        if not self.state.draining:
            self.state.draining = True
            asyncio.get_running_loop().call_later(self.settings.drain_s, self.stop)

    def _hang_up(self) -> None:
        if self._tied and not on_terminal():
            self._drain()
        else:
            self._hangups += 1
            if self._hangups == 1:
                self._keep(self._reload())

    async def _reload(self) -> None:
        """Once for all signals that have come, and once more for those that come meanwhile."""
        while self._hangups:
            while self.state.engine is None:
                await asyncio.sleep(_LOOK_S)
            self._hangups = 1
            with suppress(Problem):  # it is in the log
                await reload(self.state, None, wait=True)
            self._hangups -= 1

    async def _end_with_parent(self) -> None:
        """Also after a kill -9 of the parent, which would else leave a server that nobody knows."""
        while os.getppid() == self._parent:
            await asyncio.sleep(_LOOK_S)
        self._drain()

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself would let it go
        task.add_done_callback(self._tasks.discard)


class Later(Process):
    """One of several, in the place of one that ended. The others serve, so it never gives up."""

    def load(self) -> Engine:
        while True:
            try:
                return super().load()
            except Exception as error:  # noqa: BLE001 - whatever is wrong may be mended meanwhile
                _LOG.error("cannot start; it tries again", reason=str(error), seconds=_AGAIN_S)
                time.sleep(_AGAIN_S)
