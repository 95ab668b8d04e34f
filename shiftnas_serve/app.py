"""App: what a request passes first, /classify, the routes beside it, and the documentation.

LitServe's FastAPI app comes after ``Front``: its layers cost a request more than the inference of a
small subnet, and /classify needs none of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.bundle import Bundle, FrontierRow
from shiftnas_serve.classify import Classifier
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.oip import oip_routes
from shiftnas_serve.openapi import openapi_document
from shiftnas_serve.planner import Planner
from shiftnas_serve.problem import (
    Problem,
    answering_problems,
    install_problem_handlers,
    problem_response,
)
from shiftnas_serve.request_context import RequestContext
from shiftnas_serve.workers import Workers

Endpoint = Callable[[Request], Awaitable[Response]]


class CloseWhenDraining:
    """While the server drains, answers tell clients to connect anew: to another replica."""

    def __init__(self, app: ASGIApp, workers: Workers) -> None:
        self._app, self._workers = app, workers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_and_close if self._workers.draining else send)


class Front:
    """One path by the shortest way, all others through ``rest``."""

    def __init__(self, path: str, first: ASGIApp, rest: ASGIApp) -> None:
        self._path, self._first, self._rest = path, first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and scope["path"] == self._path
        await (self._first if ours else self._rest)(scope, receive, send)


def install_routes(
    app: FastAPI,
    bundle: Bundle,
    planner: Planner,
    workers: Workers,
    classifier: Classifier,
    *,
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    """Everything that the HTTP interface has: ``app`` behind what all requests pass first."""
    install_problem_handlers(app)
    document = openapi_document(bundle)
    app.openapi = lambda: document  # type: ignore[method-assign]

    async def classify(request: Request) -> ASGIApp:
        if request.method not in ("POST", "PUT"):
            raise Problem(405, "/classify takes POST and PUT", headers={"Allow": "POST, PUT"})
        return await classifier(request)

    async def budgets(request: Request) -> Response:
        classifier.keys.check(request.state.headers)
        return JSONResponse({**describe_budgets(bundle, workers), "resident": workers.resident()})

    async def subnet(request: Request) -> Response:
        classifier.keys.check(request.state.headers)
        identity = request.path_params["id"]
        found = planner.subnet(identity)
        if found is None:
            raise Problem(404, f"no subnet {identity!r:.40}; /budgets lists subnets by budget")
        wanted = request.query_params.get("format", "json")
        if wanted == "onnx":
            model = await asyncio.to_thread(bundle.build_onnx, found.arch)
            name = f'attachment; filename="{bundle.name}-{identity}.onnx"'
            headers = {"Content-Disposition": name}
            return Response(model.SerializeToString(), 200, headers, "application/octet-stream")
        if wanted != "json":
            raise Problem(400, f"format={wanted!r:.40} is not one of json, onnx")
        model_named = {"name": bundle.name, "version": bundle.version}
        described = json.loads(found.described)
        return JSONResponse({**described, "resolution": found.side, "model": model_named})

    async def livez(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        if workers.draining or not workers.all_ready:
            status = "draining" if workers.draining else "starting"
            problem = Problem(503, f"the server is {status}", headers={"Retry-After": "1"})
            return problem_response(problem, request)
        model = {"name": bundle.name, "version": bundle.version}
        return JSONResponse({"status": "ready", "model": model, "runtime": workers.runtime})

    async def metrics(request: Request) -> Response:
        text = await asyncio.to_thread(Metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    get: dict[str, Endpoint] = {
        "/budgets": budgets,
        "/subnets/{id}": subnet,
        "/livez": livez,
        "/readyz": readyz,
        "/metrics": metrics,
    }
    own = [Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()]
    own += oip_routes(bundle, workers, classifier)
    app.router.routes[:0] = own

    front: ASGIApp = Front("/classify", answering_problems(classify), app)
    if cors_origins:
        front = CORSMiddleware(
            front,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=["*"],
            expose_headers=["Served-FLOPs", "Server-Timing", "Request-Id", "Retry-After"],
        )
    return RequestContext(CloseWhenDraining(front, workers))


def describe_budgets(bundle: Bundle, workers: Workers) -> dict[str, object]:
    """What may be asked for, and what one may expect."""
    ready = workers.ready

    def row(entry: FrontierRow) -> dict[str, object]:
        latency_ms = workers.latency.infer_ms(entry.flops) if ready else None
        return {
            "budget_flops": entry.budget_flops,
            "subnet": bundle.space.arch_id(entry.arch),
            "flops": entry.flops,
            "params": entry.params,
            "val_accuracy": entry.val_accuracy,
            "test_accuracy": entry.test_accuracy,
            "infer_ms": latency_ms,
        }

    return {
        "model": {"name": bundle.name, "version": bundle.version, "space": bundle.space.name},
        "flops": {"min": bundle.min_flops, "max": bundle.max_flops, "groups": list(bundle.groups)},
        "latency_ms": {
            "min": workers.latency.answer_ms(bundle.min_flops) if ready else None,
            "largest_subnet": workers.latency.answer_ms(bundle.max_flops) if ready else None,
        },
        "frontier": [row(entry) for entry in bundle.frontier],
        "subnets": len(bundle.archs()),
        "labels": list(bundle.labels),
    }
