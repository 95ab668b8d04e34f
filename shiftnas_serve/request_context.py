"""RequestContext: what every request has: an id, a trace, and one line in the log.

The id is the client's ``Request-Id`` if it sent a sane one. The trace is the client's W3C
``traceparent`` continued, or a new one (www.w3.org/TR/trace-context).
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shiftnas_serve.problem import CLIENT_GONE

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
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
    """Middleware. Leaves ``request.state.request_id``, ``.trace`` and ``.log``.

    What a route puts into the dict ``log`` is in the request's line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger("shiftnas_serve.requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        identity, trace = request_id(headers), continue_trace(headers)
        log: dict[str, object] = {}
        scope.setdefault("state", {}).update(request_id=identity, trace=trace, log=log)
        status = CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["Request-Id"] = identity
                answer["Traceresponse"] = trace.header()
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            tell = self._log.warning if status >= 500 else self._log.info
            tell(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                duration_ms=round(1000 * (time.monotonic() - started), 3),
                request_id=identity,
                trace_id=trace.trace_id,
                span_id=trace.span_id,
                parent_id=trace.parent_id,
                **log,
            )


def request_id(headers: Mapping[str, str]) -> str:
    """The client's Request-Id if it is a sane one, else a new one."""
    given = headers.get("Request-Id", "")
    if 0 < len(given) <= 64 and all(c.isascii() and (c.isalnum() or c in "-_.") for c in given):
        return given
    return uuid.uuid4().hex


def continue_trace(headers: Mapping[str, str]) -> Trace:
    """The caller's trace with a span of our own; a new trace if its header is not a valid one."""
    span_id = os.urandom(8).hex()
    found = _TRACEPARENT.fullmatch(headers.get("Traceparent", "").strip())
    if found is not None:
        version, trace_id, parent_id, flags, more = found.groups()
        known = version != "ff" and not (version == "00" and more)
        if known and trace_id.strip("0") and parent_id.strip("0"):
            return Trace(trace_id, span_id, parent_id, flags)
    return Trace(os.urandom(16).hex(), span_id, None, "00")
