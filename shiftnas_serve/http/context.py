"""RequestContext: what every request has: an id, and one line in the log.

The id is the client's ``Request-Id`` if it sent a sane one. Every request passes here, so nothing
is done that only the log needs while nobody reads it.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Mapping

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shiftnas_serve.problem import CLIENT_GONE

_LOGGER = "shiftnas_serve.requests"
_SANE_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


class RequestContext:
    """Middleware. Leaves in ``scope["state"]``: plain ``headers``, ``request_id`` and ``details``.

    What the functions that a route appends to ``details`` answer is in the request's line;
    ``answered``, if a route leaves it there, is called with the status.
    ``draining``: whether answers tell clients to connect anew, to another replica.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app, self._draining = app, draining
        self._log = structlog.get_logger(_LOGGER)
        self._level = logging.getLogger(_LOGGER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = plain_headers(scope)
        identity = request_id(headers)
        details: list[Callable[[], Mapping[str, object]]] = []
        state = scope.setdefault("state", {})
        state["headers"], state["request_id"], state["details"] = headers, identity, details
        status = CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"request-id", identity.encode()),
                ]
                if self._draining():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if "answered" in state:
                state["answered"](status)
            level = logging.WARNING if status >= 500 else logging.INFO
            if self._level.isEnabledFor(level):
                self._log.log(
                    level,
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    duration_ms=round(1000 * (time.monotonic() - started), 3),
                    request_id=identity,
                    # of a caller that traces (W3C): it finds this line by its own trace's id
                    traceparent=_sane(headers, b"traceparent"),
                    **{name: value for some in details for name, value in some().items()},
                )


def plain_headers(scope: Scope) -> dict[bytes, bytes]:
    """By lower-case name; of several fields of one name the first."""
    return dict(reversed(scope["headers"]))


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's Request-Id if it is a sane one, else a new one."""
    return _sane(headers, b"request-id") or f"{random.getrandbits(128):032x}"


def _sane(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    given = headers.get(name)
    return given.decode("ascii") if given and _SANE_ID.fullmatch(given) else None
