"""Subnets: ``GET /subnets/{id}``, one subnet as JSON or as an ONNX model to take away.

An id is a hash, so a process knows those that it lists or has answered itself. Others are found by
the arch that every answer names, which any replica can check against the id.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from models.space.describe import describe_layers
from shiftnas_serve.engine.model import Model
from shiftnas_serve.http.answers import subnet_document
from shiftnas_serve.http.options import read_query
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.planning.planner import Subnet, describe
from shiftnas_serve.problem import Problem, busy

# A client that takes longer keeps everyone else waiting.
_SEND_S = 600.0


def subnet_route(state: ServerState) -> Route:
    """One download at a time: what is built is as large as the subnet, and written once more."""
    download = asyncio.Lock()

    async def subnet(request: Request) -> ASGIApp:
        state.keys.check(request.state.headers)
        model = state.serving().model
        query = read_query(request.scope["query_string"], ("format", "arch"))
        wanted = query.get("format", "json")
        if wanted not in ("json", "onnx"):
            raise Problem(400, f"format={wanted!r:.40} is not one of json, onnx")
        found = find_subnet(model, request.path_params["id"], query.get("arch"))
        if wanted == "onnx":
            return partial(send_onnx, model, found)
        return JSONResponse(
            {
                **msgspec.structs.asdict(subnet_document(found)),
                "resolution": found.side,
                "layers": describe_layers(model.bundle.space, found.value),
                "model": msgspec.structs.asdict(model.name),
            }
        )

    async def send_onnx(
        model: Model, found: Subnet, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if download.locked():
            raise busy("another subnet is being downloaded from this server; try again", 5)
        async with download, asyncio.timeout(_SEND_S):
            data = await asyncio.to_thread(
                lambda: model.bundle.build_onnx(found.value).SerializeToString()
            )
            name = quote(f"{model.name.name}-{found.id}.onnx")
            headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
            answer = Response(data, headers=headers, media_type="application/octet-stream")
            await answer(scope, receive, send)  # until the client has taken it

    return Route("/subnets/{id}", subnet, methods=["GET"])


def find_subnet(model: Model, identity: str, arch_text: str | None) -> Subnet:
    """The subnet of an id, known here or described by its arch as JSON.

    Raises Problem 404 for one that is neither, 400 for an arch that is not one or has another id.
    """
    bundle = model.bundle
    found = model.planner.by_id(identity)
    only_stored = bool(bundle.space.norms)  # no other arch has statistics
    if arch_text is None or (only_stored and found is None):
        if found is not None:
            return found
        hint = "" if only_stored else "; add ?arch= and the subnet.arch of the answer that named it"
        raise Problem(404, f"no subnet {identity!r:.40}; /budgets lists subnets by budget{hint}")
    try:
        document = json.loads(arch_text)
        if not isinstance(document, dict):
            raise ValueError("send a JSON object")
        arch = bundle.space.arch_from_json(document)
    except (ValueError, RecursionError) as error:
        said = str(error)[:200]
        raise Problem(400, f"this is not an arch of {bundle.space.name}: {said}") from None
    actual = bundle.space.arch_id(arch)
    if actual != identity:
        raise Problem(400, f"this arch is subnet {actual}, not {identity!r:.40}")
    return found or describe(bundle, arch)
