"""Problem: why there is no answer. The library raises it, HTTP writes it (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping

CLIENT_GONE = 499
"""Logged and counted where the client went away before its answer; nobody is sent it."""

STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 500, 503, 504)
"""Of all problems that anybody is sent."""


class Problem(Exception):
    """``status`` as HTTP counts; ``extra`` fields and ``headers`` go into the answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.extra, self.headers = dict(extra or {}), dict(headers or {})


def busy(detail: str, retry_s: int = 1) -> Problem:
    """429: there is too much to do now."""
    return Problem(429, detail, headers={"Retry-After": str(retry_s)})


def late(detail: str) -> Problem:
    """504: its time is over."""
    return Problem(504, detail, headers={"Retry-After": "1"})
