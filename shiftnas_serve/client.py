"""Client: ask a server from Python, waiting (``Client``) or not (``AsyncClient``).

    with Client("http://localhost:8000") as client:
        answer = client.classify("photo.jpg", flops="4M")
        print(answer.label, answer.probability, answer.subnet.flops)

It needs httpx (``pip install -e '.[client]'``) and msgspec, and neither NumPy nor a bundle.
Connections are kept. What a server refuses for now (429, 502, 503, 504), and what a connection
loses, is sent again, no sooner than ``Retry-After`` says: to classify a photo twice does no harm.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from shiftnas_serve.answer import Classification
from shiftnas_serve.problem import Problem

_FOR_NOW = (429, 502, 503, 504)
_MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # an address, a header
_FIRST_WAIT_S = 0.1
_LEAST_S = 0.001
_LATE = "no whole answer came in time"
_PIECE_BYTES = 65_536
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)
_TIMING = re.compile(r"(\w+);dur=([\d.]+)")


class Answer(Classification, frozen=True):
    """``timing_ms``: milliseconds of each stage in the server (decode, queue, infer, build)."""

    timing_ms: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.predictions[0].label

    @property
    def probability(self) -> float:
        """How probable it is, 0 to 1."""
        return self.predictions[0].probability


class Client:
    """Waits for its answers. Thread-safe; a context that closes its connections."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """``url``: with the prefix that the server has, if any. ``key``: an API key.

        ``timeout_s``: of one call, with all its ``retries``; httpx.TimeoutException then. (A server
        that stops reading is waited for up to twice as long, and headers of an answer that come in
        drops are not cut short.) ``transport``: of httpx.
        """
        self._timeout_s, self._retries = timeout_s, retries
        self._http = httpx.Client(transport=transport, **_options(url, key, timeout_s))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def classify(
        self,
        image: str | Path | bytes,
        *,
        flops: str | float | None = None,
        latency_ms: str | float | None = None,
        confidence: str | float | None = None,
        top_k: int | None = None,
    ) -> Answer:
        """The classes of a photo (a file's path, or its content), within the budgets.

        ``flops``: multiply-adds, as ``4e6`` or ``"4M"``. ``latency_ms``: inside the server.
        ``confidence``: how sure it must be, 0 to 1; where a small subnet is not, a larger answers.
        Raises Problem: why the server has no answer.
        """
        asked = _asked(image, flops, latency_ms, confidence, top_k)
        return _answer(self._ask("POST", "classify", **asked))

    def budgets(self) -> dict[str, Any]:
        """What may be asked for, and what one may expect: ``GET /budgets``."""
        return self._ask("GET", "budgets").json()

    def _ask(self, method: str, path: str, **named: Any) -> httpx.Response:
        tries = _Tries(self._timeout_s, self._retries)
        while True:
            request = self._http.build_request(method, path, timeout=tries.left_s(), **named)
            if request.content:
                request.stream = _Upload(request, tries)
            try:
                answer = self._http.send(request, stream=True)
                with closing(answer):
                    content = b"".join(map(tries.in_time, answer.iter_bytes()))
                answer.headers.pop("content-encoding", None)  # (it is decoded)
                given = httpx.Response(answer.status_code, headers=answer.headers, content=content)
                if given.is_success:
                    return given
            except httpx.TransportError as error:
                given = error
            time.sleep(tries.wait_s(given))


class AsyncClient:
    """As ``Client``, for an event loop: ``async with AsyncClient(url) as client``."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout_s, self._retries = timeout_s, retries
        self._http = httpx.AsyncClient(transport=transport, **_options(url, key, timeout_s))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def classify(
        self,
        image: str | Path | bytes,
        *,
        flops: str | float | None = None,
        latency_ms: str | float | None = None,
        confidence: str | float | None = None,
        top_k: int | None = None,
    ) -> Answer:
        """As ``Client.classify``."""
        asked = _asked(image, flops, latency_ms, confidence, top_k)
        return _answer(await self._ask("POST", "classify", **asked))

    async def budgets(self) -> dict[str, Any]:
        """As ``Client.budgets``."""
        return (await self._ask("GET", "budgets")).json()

    async def _ask(self, method: str, path: str, **named: Any) -> httpx.Response:
        tries = _Tries(self._timeout_s, self._retries)
        while True:
            try:
                left_s = tries.left_s()
                async with asyncio.timeout(left_s):
                    given = await self._http.request(method, path, timeout=left_s, **named)
                if given.is_success:
                    return given
            except httpx.TransportError as error:
                given = error
            except TimeoutError:
                given = httpx.ReadTimeout(_LATE)
            await asyncio.sleep(tries.wait_s(given))


class _Upload(httpx.SyncByteStream):
    """The content of a request, in pieces: httpx's time is of each operation of a socket alone."""

    def __init__(self, request: httpx.Request, tries: _Tries) -> None:
        self._content, self._tries = request.content, tries
        self._timeouts = request.extensions["timeout"]

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), _PIECE_BYTES):
            yield self._tries.in_time(self._content[start : start + _PIECE_BYTES])
        self._timeouts["read"] = self._tries.left_s()  # for the answer


class _Tries:
    """Of one call."""

    def __init__(self, timeout_s: float, retries: int) -> None:
        self._end_s, self._left = time.monotonic() + timeout_s, retries
        self._pause_s = _FIRST_WAIT_S

    def left_s(self) -> float:
        """For the next."""
        return max(self._end_s - time.monotonic(), _LEAST_S)

    def in_time(self, piece: bytes) -> bytes:
        """Of what comes or goes in drops. Raises httpx.ReadTimeout where it is too late."""
        if time.monotonic() > self._end_s:
            raise httpx.ReadTimeout(_LATE)
        return piece

    def wait_s(self, given: httpx.Response | httpx.TransportError) -> float:
        """Until the next. Raises what is wrong, if it does not pass, or not in time."""
        wait_s = self._pause_s * random.uniform(0.5, 1.0)
        error: Exception
        if isinstance(given, httpx.TransportError):
            error, passes = given, not isinstance(given, _MISTAKES)
        else:
            error, passes = problem_of(given), given.status_code in _FOR_NOW
            wait_s = max(retry_after_s(given.headers.get("retry-after")), wait_s)
        if not passes or not self._left or time.monotonic() + wait_s > self._end_s:
            raise error
        self._pause_s, self._left = 2 * self._pause_s, self._left - 1
        return wait_s


def problem_of(response: httpx.Response) -> Problem:
    """What the server says of a request that failed; of another server's answer, its status."""
    detail, extra = f"{response.status_code} {response.reason_phrase}", dict[str, object]()
    try:
        extra = dict(response.json())
        detail = str(extra.pop("detail"))
    except (ValueError, KeyError, TypeError):
        pass
    return Problem(response.status_code, detail, extra=extra, headers=dict(response.headers))


def retry_after_s(text: str | None) -> float:
    """Seconds until a ``Retry-After``, which is a number of them or a date; 0 for neither."""
    if text is None:
        return 0.0
    if text.isdecimal():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _options(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    bearer = None if key is None else {"Authorization": f"Bearer {key}".encode()}  # UTF-8
    return {"base_url": url, "headers": bearer, "timeout": timeout_s, "limits": _LIMITS}


def _asked(
    image: str | Path | bytes,
    flops: str | float | None,
    latency_ms: str | float | None,
    confidence: str | float | None,
    top_k: int | None,
) -> dict[str, Any]:
    """What a request has. Raises ValueError for a file that cannot be read."""
    try:
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {image}: {error.strerror}") from None
    budgets = {"FLOPs-Budget": flops, "Latency-Budget": latency_ms, "Confidence": confidence}
    headers = {name: str(value).encode() for name, value in budgets.items() if value is not None}
    headers["Content-Type"] = b"application/octet-stream"  # the content says what it is
    query = None if top_k is None else {"top_k": top_k}
    return {"content": content, "headers": headers, "params": query}


def _answer(response: httpx.Response) -> Answer:
    timing = _TIMING.findall(response.headers.get("server-timing", ""))
    answer = msgspec.json.decode(response.content, type=Answer)
    return msgspec.structs.replace(answer, timing_ms={k: float(v) for k, v in timing})
