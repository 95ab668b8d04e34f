"""Admin: the routes that change the server. They have keys of their own."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shiftnas_serve.body import BodyLimits, read_body
from shiftnas_serve.keys import ApiKeys
from shiftnas_serve.problem import Problem
from shiftnas_serve.reload import Reloader
from shiftnas_serve.settings import PREFIX, Settings

_MAX_BODY_BYTES = 65_536


def admin_route(reloader: Reloader, settings: Settings) -> Route:
    """``POST /admin/reload``."""
    limits = BodyLimits(_MAX_BODY_BYTES, settings.timeout_s)
    keys = ApiKeys([key.get_secret_value() for key in settings.admin_keys], "admin key")

    async def reload(request: Request) -> Response:
        if not len(keys):
            raise Problem(
                403,
                "this server has no admin key, so nobody may reload it; set admin_keys "
                f"({PREFIX}ADMIN_KEYS=KEY) and start it anew",
            )
        keys.check(request.state.headers)
        source = read_source(await read_body(request, limits))
        done = await reloader.reload(source, request.state.request_id)
        request.state.details.append(lambda: {"model": done.model, "previous": done.previous})
        return JSONResponse({**done.to_json(), "request_id": request.state.request_id})

    return Route("/admin/reload", reload, methods=["POST"], include_in_schema=False)


def read_source(body: bytes) -> Path | None:
    """The path in ``{"bundle": "PATH"}``; None for no body. Problem 400 for anything else."""
    if not body.strip():
        return None
    wanted = Problem(400, 'send {"bundle": "PATH"} as JSON, or no body for the same path')
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise wanted from None
    if not isinstance(document, dict) or document.keys() - {"bundle"}:
        raise wanted
    path = document.get("bundle")
    if path is None:
        return None
    if not isinstance(path, str) or not path or "\0" in path:
        raise wanted
    return Path(path)
