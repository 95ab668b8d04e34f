"""Classify: ``POST /classify``, and what its like under /v2 shares with it.

1. the key: 401; whether there is an engine: 503
2. the options: 400; whether there is time: 429
3. the body, within its limits: 400, 408, 413, 415, 429
4. the image, by the engine (``library``), while the client waits: 499, and what it raises
5. the result as JSON
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from shiftnas_serve.budgets import may_degrade
from shiftnas_serve.http.answers import classification
from shiftnas_serve.http.body import announced_bytes, read_image
from shiftnas_serve.http.options import read_budgets, read_top_k
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.problem import Problem
from shiftnas_serve.scheduling.work import LARGE_BODY_BYTES

Endpoint = Callable[[Scope, Receive], Awaitable[ASGIApp]]


def classify_endpoint(state: ServerState) -> Endpoint:
    """What answers ``/classify``."""
    settings = state.settings

    async def classify(scope: Scope, receive: Receive) -> ASGIApp:
        if scope["method"] not in ("POST", "PUT"):
            raise Problem(405, "/classify takes POST and PUT", headers={"Allow": "POST, PUT"})
        started = time.monotonic()
        known = scope["state"]
        state.keys.check(known["headers"])
        engine = state.serving()
        asked = read_budgets(scope["headers"])
        top_k = read_top_k(scope["query_string"], len(engine.model.bundle.labels))
        if not known.get("whole") or may_degrade(asked):  # (else ``answer`` says so as soon)
            large = announced_bytes(known["headers"]) > LARGE_BODY_BYTES
            engine.refuse_if_hopeless(asked, large=large)
        with engine.room.share() as share:
            data = await read_image(scope, receive, share, settings, state.threads)
            share.add(1)
            result = await engine.answer(
                data,
                asked,
                top_k,
                give_up_s=started + settings.timeout_s,
                gone=lambda: client_gone(receive),
            )
        state.metrics.observed(result)
        known["details"].append(result.log)
        return classification(result, known["request_id"])

    return classify


class Counted:
    """An endpoint as an ASGI app; what it answers is counted by its status."""

    def __init__(self, endpoint: Endpoint, state: ServerState) -> None:
        self._endpoint, self._metrics = endpoint, state.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["answered"] = self._metrics.answered
        with self._metrics.in_flight.track_inprogress():
            answer = await self._endpoint(scope, receive)
            await answer(scope, receive, send)


async def client_gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
