"""RequestContext: what every request has: an id, a trace, and one line in the log.

The id is the client's ``Request-Id`` if it sent a sane one. The trace is the client's W3C
``traceparent`` continued, or a new one where it sent none, a bad one or several
(www.w3.org/TR/trace-context-1). Every request passes here, so
nothing is done that only the log needs while nobody reads it.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shiftnas_serve.problem import CLIENT_GONE

_LOGGER = "shiftnas_serve.requests"
_SANE_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(slots=True)
class Trace:
    """Where this request stands in a trace. parent_id: the caller's span, if it named one."""

    trace_id: str
    span_id: str
    parent_id: str | None
    flags: str

    def header(self) -> str:
        """As W3C writes it: what this server answers, and would send on."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


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
        if b"traceparent" in headers and _count(scope, b"traceparent") > 1:
            del headers[b"traceparent"]  # which of them is the caller's?
        identity, trace = request_id(headers), continue_trace(headers)
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
                    (b"traceresponse", trace.header().encode()),
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
                    trace_id=trace.trace_id,
                    span_id=trace.span_id,
                    parent_id=trace.parent_id,
                    **{name: value for some in details for name, value in some().items()},
                )


def plain_headers(scope: Scope) -> dict[bytes, bytes]:
    """By lower-case name; of several fields of one name the first."""
    return dict(reversed(scope["headers"]))


def _count(scope: Scope, name: bytes) -> int:
    return sum(one == name for one, _ in scope["headers"])


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's Request-Id if it is a sane one, else a new one."""
    given = headers.get(b"request-id")
    if given is not None and _SANE_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{random.getrandbits(128):032x}"


def continue_trace(headers: Mapping[bytes, bytes]) -> Trace:
    """The caller's trace with a span of our own; a new trace if its header is not a valid one."""
    fresh = f"{random.getrandbits(192):048x}"
    span_id = fresh[:16]
    given = headers.get(b"traceparent")
    found = None if given is None else _TRACEPARENT.fullmatch(given.decode("latin-1").strip())
    if found is not None:
        version, trace_id, parent_id, flags, more = found.groups()
        known = version != "ff" and not (version == "00" and more)
        if known and trace_id.strip("0") and parent_id.strip("0"):
            # Of the flags, one has a meaning; those that may get one are not ours to set.
            return Trace(trace_id, span_id, parent_id, "01" if int(flags, 16) & 1 else "00")
    return Trace(fresh[16:], span_id, None, "00")
