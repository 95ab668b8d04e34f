"""Admin: ``POST /admin/reload``, the route that changes the server. It has keys of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from shiftnas_serve.answer import ModelName
from shiftnas_serve.engine.reload import Reloaded
from shiftnas_serve.http.answers import json_answer
from shiftnas_serve.http.body import read_body
from shiftnas_serve.http.options import read_query, refuse_repeated
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import PREFIX

_RIGHT = 'send {"bundle": "PATH"} as JSON, or no body for the same path'

_LOG = structlog.get_logger("shiftnas_serve.reload")


class Reload(msgspec.Struct, forbid_unknown_fields=True):
    """What to serve: the bundle at a path on the server, or the path that is served, read again."""

    bundle: str | None = None


class ReloadAnswer(msgspec.Struct):
    """What came of it; ``model`` is what is served now."""

    status: Literal["reloaded", "unchanged"]
    model: ModelName
    previous: ModelName
    duration_ms: float
    request_id: str


def admin_route(state: ServerState) -> Route:
    """``POST /admin/reload``."""
    settings = state.settings.model_copy(update={"max_body_bytes": 65_536})

    async def answer(request: Request) -> ASGIApp:
        if not settings.admin_keys:
            hint = f"set admin_keys ({PREFIX}ADMIN_KEYS=KEY) and start it anew"
            raise Problem(403, f"this server has no admin key, so nobody may reload it; {hint}")
        state.admin_keys.check(request.state.headers)
        read_query(request.scope["query_string"], (), _RIGHT)
        if settings.processes > 1:
            hint = "send SIGHUP to their parent, if that is uvicorn's, or start the server anew"
            raise Problem(409, f"this is one of {settings.processes} processes; {hint}")
        with state.serving().room.share() as share:
            body = await read_body(request.scope, request.receive, share, settings)
        done = await reload(state, read_source(body))
        request.state.details.append(lambda: {"model": done.model, "previous": done.previous})
        status = "reloaded" if done.changed else "unchanged"
        duration_ms, identity = round(done.duration_ms, 1), request.state.request_id
        return json_answer(ReloadAnswer(status, done.model, done.previous, duration_ms, identity))

    return Route("/admin/reload", answer, methods=["POST"])


async def reload(state: ServerState, source: Path | None, *, wait: bool = False) -> Reloaded:
    """Serve the bundle at ``source``, or at the path that is served. Logged and counted.

    ``wait``: for the end of a reload that is under way. Raises Problem as ``Engine.reload``.
    """
    engine = state.serving()
    try:
        done = await asyncio.to_thread(engine.reload, source, wait=wait)
    except Problem as problem:
        state.metrics.reloaded("refused")
        served = engine.model.name.version
        _LOG.warning("reload refused", reason=problem.detail, served=served)
        raise
    state.metrics.reloaded("done" if done.changed else "unchanged")
    _LOG.info("reload done", model=done.model.version, previous=done.previous.version)
    return done


def read_source(body: bytes) -> Path | None:
    """The path in ``{"bundle": "PATH"}``; None for no body. Problem 400 for anything else."""
    try:
        body = body.strip() or b"{}"
        path = msgspec.json.decode(body, type=Reload).bundle
        refuse_repeated(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        path = ""
    if path is not None and (not path or "\0" in path):
        raise Problem(400, _RIGHT)
    return None if path is None else Path(path)
