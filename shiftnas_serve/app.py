"""App: the server as one ASGI application, for any host.

    uvicorn --factory shiftnas_serve.app:create_app      # with SHIFTNAS_* in the environment

It loads its bundle when it starts, answers until it is shut down, and needs nothing of its host but
ASGI. ``hosts`` run it. SIGHUP ends the process above; a reload is ``POST /admin/reload``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from shiftnas_serve.http.about import about_routes
from shiftnas_serve.http.admin import admin_route
from shiftnas_serve.http.answers import own_path, problem_response, unknown_problem
from shiftnas_serve.http.classify import Counted, classify_endpoint
from shiftnas_serve.http.context import RequestContext
from shiftnas_serve.http.page import page_routes
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.http.subnets import subnet_route
from shiftnas_serve.library import WEDGED, Engine
from shiftnas_serve.log import configure_log
from shiftnas_serve.oip.routes import oip_routes
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings, load_settings

# So long /livez says so first.
_LAST_S = 2.0

_LOG = structlog.get_logger("shiftnas_serve.app")


class App:
    """``state`` is what it serves with; ``failure`` why it cannot.

    ``waits``: whether its start ends when the bundle is loaded, as hosts expect. Else it answers
    /livez meanwhile.
    """

    def __init__(self, settings: Settings, *, waits: bool = True) -> None:
        self.settings, self.state = settings, ServerState(settings)
        self.failure: str | None = None
        self._waits = waits
        self._app = assemble(self.state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                with suppress(asyncio.CancelledError):  # a second signal: nothing is waited for
                    assert (await receive())["type"] == "lifespan.shutdown"
        except ValueError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    def load(self) -> Engine:
        """What is served, in a thread: for hosts to override. Raises ValueError."""
        return Engine(self.settings, end_soon)

    def loaded(self) -> None:
        """The bundle is loaded, or found not to be good: for hosts to override."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Loaded meanwhile, for an application that mounts this one. ValueError: it cannot be."""
        loaded = asyncio.Event()
        loop = asyncio.get_running_loop()

        def load() -> None:
            try:
                self.state.engine = self.load()
                # What is loaded stays: to look through it for garbage again and again takes 3 % of
                # the processor. Answers make next to none.
                gc.freeze()
                gc.set_threshold(10_000)
            except ValueError as error:
                self.failure = str(error)
            except Exception as error:  # noqa: BLE001 - what never becomes ready must not run on
                self.failure = repr(error)
            with suppress(RuntimeError):  # it has been stopped meanwhile
                loop.call_soon_threadsafe(loaded.set)
                loop.call_soon_threadsafe(self.loaded)

        # Not of an executor: those are waited for, however long that takes.
        threading.Thread(target=load, name="load", daemon=True).start()
        if self._waits:
            await loaded.wait()
            if self.failure is not None:
                raise ValueError(self.failure)
        try:
            yield
        finally:
            if self.state.engine is not None:
                self.state.engine.close()


def create_app(kind: type[App] = App) -> App:
    """The server, with settings from the environment."""
    settings = load_settings({})
    configure_log(settings.log_level, settings.log_format)
    return kind(settings)


def end_soon(reason: str) -> None:
    """An inference stands still: end this process, so that who supervises it starts another."""
    _LOG.critical("this process ends", reason=reason, status=WEDGED)
    end = threading.Timer(_LAST_S, os._exit, (WEDGED,))
    end.daemon = True
    end.start()


def assemble(state: ServerState) -> ASGIApp:
    """All routes, behind what every request passes first."""
    routes: list[BaseRoute] = [
        *about_routes(state),
        subnet_route(state),
        admin_route(state),
        *oip_routes(state),
        *(page_routes() if state.settings.page else ()),
    ]
    # (a redirect would go to where the client's Host header says)
    rest = Router(routes, redirect_slashes=False)
    classify = Counted(classify_endpoint(state), state)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        """Every error is a problem, those of the router included."""
        scope["app"] = front  # for the router: it raises what it would else answer as text
        try:
            await (classify if own_path(scope) == "/classify" else rest)(scope, receive, send)
            return
        except Problem as error:
            problem = error
        except HTTPException as error:
            path = f"{scope['path']:.200}"
            detail = f"{scope['method']} is not for {path}"
            if error.status_code == 404:
                detail = f"there is no {path} here; /docs lists what there is"
            problem = Problem(error.status_code, detail, headers=error.headers)
        except Exception:  # the client is told, and what it was goes into the log
            await problem_response(unknown_problem(), scope)(scope, receive, send)
            raise
        await problem_response(problem, scope)(scope, receive, send)

    app: ASGIApp = front
    if state.settings.cors_origins:
        origins, methods = state.settings.cors_origins, ["GET", "POST", "PUT"]
        app = CORSMiddleware(app, origins, methods, ["*"], expose_headers=["*"])
    return RequestContext(app, lambda: state.draining)
