"""About: the routes that tell of the server and its model."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from models.bundle.folder import FrontierRow
from shiftnas_serve.engine.model import Model
from shiftnas_serve.http.docs import docs_page
from shiftnas_serve.http.openapi import openapi_document
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.planning.planner import describe
from shiftnas_serve.problem import Problem


def about_routes(state: ServerState) -> list[Route]:
    """Probes, metrics, budgets, documentation."""

    async def livez(request: Request) -> Response:
        if state.engine is not None and state.engine.wedged is not None:
            raise Problem(503, f"the process is about to end: {state.engine.wedged}")
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        if state.draining:
            raise Problem(503, "the server is draining", headers={"Retry-After": "1"})
        model = state.serving().model
        name = msgspec.structs.asdict(model.name)
        return JSONResponse({"status": "ready", "model": name, "runtime": model.runtime})

    async def metrics(request: Request) -> Response:
        text = await asyncio.to_thread(state.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def budgets(request: Request) -> Response:
        state.keys.check(request.state.headers)
        return JSONResponse(describe_budgets(state.serving().model))

    async def openapi(request: Request) -> Response:
        return JSONResponse(openapi_document(state.serving().model.bundle))

    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page(openapi_document(state.serving().model.bundle)))

    named = [Route(f"/{one.__name__}", one) for one in (livez, readyz, metrics, budgets, docs)]
    return [*named, Route("/openapi.json", openapi)]


def describe_budgets(model: Model) -> dict[str, object]:
    """What may be asked for, and what one may expect."""
    bundle, latency = model.bundle, model.planner.latency

    def row(entry: FrontierRow) -> dict[str, object]:
        known = {name: value for name, value in vars(entry).items() if name != "arch"}
        if entry.agreement is None:
            del known["agreement"]
        identity = bundle.space.arch_id(entry.arch)
        subnet = model.planner.by_id(identity) or describe(bundle, entry.arch)
        return {**known, "subnet": identity, "infer_ms": model.planner.cost_ms(subnet)}

    known = bundle.confidence
    names = ("budget_flops", "first_flops", "second_flops")
    pairs = [dict(zip(names, pair, strict=True)) for pair in known.pairs] if known else []
    return {
        "model": {**msgspec.structs.asdict(model.name), "space": bundle.space.name},
        "measured_on": bundle.measured_on,
        "measured_in": bundle.precision,  # bf16 has the figures of fp32
        "flops": {"min": bundle.min_flops, "max": bundle.max_flops, "groups": list(bundle.groups)},
        "latency_ms": {
            "min": latency.answer_ms(bundle.min_flops),
            "largest_subnet": latency.answer_ms(bundle.max_flops),
        },
        "confidence": known and {"images": known.images, "data": known.data, "pairs": pairs},
        "frontier": [row(entry) for entry in bundle.frontier],
        "subnets": len(bundle.archs()),
        "labels": list(bundle.labels),
        "card": bundle.card or None,
        "resident": sorted(bundle.space.arch_id(arch) for arch in model.sessions.resident()),
    }
