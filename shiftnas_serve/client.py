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
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from shiftnas_serve.problem import Problem

_FOR_NOW = (429, 502, 503, 504)
_FIRST_WAIT_S = 0.1
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)
_TIMING = re.compile(r"(\w+);dur=([\d.]+)")

Steps = Generator[httpx.Request | float, httpx.Response | httpx.TransportError | None, Any]
"""What a call does: it yields a request that is to be sent, or seconds that are to pass."""


class Prediction(msgspec.Struct, frozen=True):
    """One class and how probable it is, 0 to 1."""

    label: str
    index: int
    probability: float


class Subnet(msgspec.Struct, frozen=True):
    """What answered: its multiply-adds for an image, its parameters, its choices."""

    id: str
    flops: int
    params: int
    arch: dict[str, Any]


class Budget(msgspec.Struct, frozen=True):
    """What was asked for. ``degraded``: a latency budget made the subnet smaller."""

    flops: float | None = None
    latency_ms: float | None = None
    degraded: bool = False


class Model(msgspec.Struct, frozen=True):
    """Of which bundle the subnet is."""

    name: str
    version: str


class Answer(msgspec.Struct, frozen=True):
    """The classes of a photo, the most probable first.

    ``timing_ms``: milliseconds of each stage in the server (decode, queue, infer, build).
    """

    predictions: tuple[Prediction, ...]
    subnet: Subnet
    budget: Budget
    model: Model
    request_id: str
    timing_ms: dict[str, float] = {}

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.predictions[0].label

    @property
    def probability(self) -> float:
        """How probable it is, 0 to 1."""
        return self.predictions[0].probability


class _Calls:
    """What both clients do, step by step, and how each of them takes a step is its own."""

    def __init__(self, timeout_s: float, retries: int) -> None:
        self._timeout_s, self._retries = timeout_s, retries

    def _classify(
        self,
        http: httpx.Client | httpx.AsyncClient,
        image: str | Path | bytes,
        flops: str | float | None,
        latency_ms: str | float | None,
        top_k: int | None,
    ) -> Steps:
        asked = {"FLOPs-Budget": flops, "Latency-Budget": latency_ms}
        headers = {name: str(value) for name, value in asked.items() if value is not None}
        headers["Content-Type"] = "application/octet-stream"  # the content says what it is
        path = "classify" if top_k is None else f"classify?top_k={top_k}"
        response = yield from self._ask(http, "POST", path, headers, _read(image))
        timing = _TIMING.findall(response.headers.get("server-timing", ""))
        answer = msgspec.json.decode(response.content, type=Answer)
        return msgspec.structs.replace(answer, timing_ms={k: float(v) for k, v in timing})

    def _budgets(self, http: httpx.Client | httpx.AsyncClient) -> Steps:
        response = yield from self._ask(http, "GET", "budgets")
        return response.json()

    def _ask(
        self,
        http: httpx.Client | httpx.AsyncClient,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Steps:
        """Until there is an answer. Raises Problem, or httpx's error where nobody answers."""
        end_s = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            given = yield http.build_request(method, path, headers=headers, content=content)
            wait_s = _FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0)
            if isinstance(given, httpx.Response):
                if given.is_success:
                    return given
                error: Exception = problem_of(given)
                passes = given.status_code in _FOR_NOW
                wait_s = max(retry_after_s(given.headers.get("retry-after")), wait_s)
            else:
                assert given is not None
                error, passes = given, True
            if not passes or attempt == self._retries or time.monotonic() + wait_s > end_s:
                raise error
            yield wait_s
        raise AssertionError("the last attempt returns or raises")


class Client(_Calls):
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

        ``timeout_s``: of one call, with all its ``retries``. ``transport``: of httpx.
        """
        super().__init__(timeout_s, retries)
        self._http = httpx.Client(
            base_url=url, headers=_key(key), timeout=timeout_s, limits=_LIMITS, transport=transport
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(
        self,
        image: str | Path | bytes,
        *,
        flops: str | float | None = None,
        latency_ms: str | float | None = None,
        top_k: int | None = None,
    ) -> Answer:
        """The classes of a photo (a file's path, or its content), within the budgets.

        ``flops``: multiply-adds, as ``4e6`` or ``"4M"``. ``latency_ms``: inside the server.
        Raises Problem: why the server has no answer.
        """
        return self._run(self._classify(self._http, image, flops, latency_ms, top_k))

    def budgets(self) -> dict[str, Any]:
        """What may be asked for, and what one may expect: ``GET /budgets``."""
        return self._run(self._budgets(self._http))

    def _run(self, steps: Steps) -> Any:
        given: httpx.Response | httpx.TransportError | None = None
        try:
            while True:
                step = steps.send(given)
                given = None
                if isinstance(step, httpx.Request):
                    try:
                        given = self._http.send(step)
                    except httpx.TransportError as error:
                        given = error
                else:
                    time.sleep(step)
        except StopIteration as done:
            return done.value


class AsyncClient(_Calls):
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
        """As ``Client``."""
        super().__init__(timeout_s, retries)
        self._http = httpx.AsyncClient(
            base_url=url, headers=_key(key), timeout=timeout_s, limits=_LIMITS, transport=transport
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def classify(
        self,
        image: str | Path | bytes,
        *,
        flops: str | float | None = None,
        latency_ms: str | float | None = None,
        top_k: int | None = None,
    ) -> Answer:
        """As ``Client.classify``."""
        return await self._run(self._classify(self._http, image, flops, latency_ms, top_k))

    async def budgets(self) -> dict[str, Any]:
        """As ``Client.budgets``."""
        return await self._run(self._budgets(self._http))

    async def _run(self, steps: Steps) -> Any:
        given: httpx.Response | httpx.TransportError | None = None
        try:
            while True:
                step = steps.send(given)
                given = None
                if isinstance(step, httpx.Request):
                    try:
                        given = await self._http.send(step)
                    except httpx.TransportError as error:
                        given = error
                else:
                    await asyncio.sleep(step)
        except StopIteration as done:
            return done.value


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


def _key(key: str | None) -> dict[str, str] | None:
    return None if key is None else {"Authorization": f"Bearer {key}"}


def _read(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {image}: {error.strerror}") from None
