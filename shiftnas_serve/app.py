"""App: what a request passes first, /classify, and the routes beside it.

LitServe's FastAPI app comes after ``Front``: its layers cost a request more than the inference of a
small subnet, and /classify needs none of them. What belongs to a version of the bundle is routed by
``complete_revision``, the server's own by ``install_routes``.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.bundle.folder import Bundle, FrontierRow
from shiftnas_serve.admin import admin_route
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.oip import oip_routes
from shiftnas_serve.openapi import openapi_document
from shiftnas_serve.problem import (
    Problem,
    answering_problems,
    install_problem_handlers,
    problem_response,
)
from shiftnas_serve.reload import Reloader
from shiftnas_serve.request_context import RequestContext
from shiftnas_serve.revisions import Revision, RevisionRoute, Revisions
from shiftnas_serve.settings import Settings
from shiftnas_serve.subnets import Downloads, subnet_route
from shiftnas_serve.workers import Workers


class CloseWhenDraining:
    """While the server drains, answers tell clients to connect anew: to another replica."""

    def __init__(self, app: ASGIApp, revisions: Revisions) -> None:
        self._app, self._revisions = app, revisions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_and_close if self._revisions.draining else send)


class Front:
    """One path by the shortest way, all others through ``rest``."""

    def __init__(self, path: str, first: ASGIApp, rest: ASGIApp) -> None:
        self._path, self._first, self._rest = path, first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and scope["path"] == self._path
        await (self._first if ours else self._rest)(scope, receive, send)


def install_routes(
    app: FastAPI,
    revisions: Revisions,
    reloader: Reloader,
    numbers: Metrics,
    settings: Settings,
) -> ASGIApp:
    """Everything that the HTTP interface has: ``app`` behind what all requests pass first."""
    install_problem_handlers(app)
    app.openapi = lambda: dict(revisions.current.document or {})  # type: ignore[method-assign]  (FastAPI's own way to replace it)

    async def classify(request: Request) -> ASGIApp:
        if request.method not in ("POST", "PUT"):
            raise Problem(405, "/classify takes POST and PUT", headers={"Allow": "POST, PUT"})
        revision = revisions.current
        revision.users += 1  # kept while a request needs it
        try:
            return await revision.classifier(request)
        finally:
            revision.users -= 1

    async def livez(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        if revisions.draining or not revisions.ready:
            status = "has no worker in every HTTP process" if revisions.started else "is starting"
            status = "is draining" if revisions.draining else status
            problem = Problem(503, f"the server {status}", headers={"Retry-After": "1"})
            return problem_response(problem, request)
        current = revisions.current
        body = {"status": "ready", "model": current.model, "runtime": current.workers.runtime}
        return JSONResponse(body)

    async def metrics(request: Request) -> Response:
        text = await asyncio.to_thread(numbers.text, revisions.current.model)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    own: list[BaseRoute] = [RevisionRoute(revisions)]
    for path, endpoint in {"/livez": livez, "/readyz": readyz, "/metrics": metrics}.items():
        own.append(Route(path, endpoint, methods=["GET"]))
    app.router.redirect_slashes = False  # to where the client's Host header says
    app.router.routes[:0] = [*own, admin_route(reloader, settings)]

    front: ASGIApp = Front("/classify", answering_problems(classify), app)
    if settings.cors_origins:
        front = CORSMiddleware(
            front,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=["*"],
            expose_headers=["Served-FLOPs", "Server-Timing", "Request-Id", "Retry-After"],
        )
    return RequestContext(CloseWhenDraining(front, revisions))


def complete_revision(revision: Revision, revisions: Revisions, downloads: Downloads) -> None:
    """Give a revision its routes and its documentation."""
    bundle, workers = revision.bundle, revision.workers
    classifier = revision.classifier

    async def budgets(request: Request) -> Response:
        classifier.admission.keys.check(request.state.headers)
        return JSONResponse({**describe_budgets(bundle, workers), "resident": workers.resident()})

    revision.routes = [
        Route("/budgets", budgets, methods=["GET"]),
        subnet_route(revision, downloads),
        *oip_routes(bundle, workers, classifier, revisions),
    ]
    revision.document = openapi_document(bundle)


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
