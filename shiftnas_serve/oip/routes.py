"""Open Inference Protocol v2: ``/v2/models/NAME/infer`` beside ``/classify``.

The same model for clients that speak the protocol of KServe and Triton, with Triton's binary tensor
and classification extensions. Input ``image``: BYTES, encoded JPEG, PNG or WebP (base64 where the
tensor is JSON). Budgets are request parameters named as the headers are, ``flops_budget``,
``latency_budget`` and ``confidence``, or the headers themselves. Anywhere else they are refused,
and so is a key that stands twice.

Source: github.com/kserve/open-inference-protocol, inference_rest.md; Triton's
extension_binary_data.md and extension_classification.md.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope

from models import __version__
from shiftnas_serve.engine.model import Model
from shiftnas_serve.http.body import in_turn, read_body
from shiftnas_serve.http.classify import Counted, client_gone
from shiftnas_serve.http.options import add_budgets, read_budgets, refuse_query
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.oip.triton import EXTENSIONS, Tensor, triton_routes
from shiftnas_serve.oip.wire import (
    CLASSES,
    LENGTH_HEADER,
    OUTPUTS,
    answer_bytes,
    parse_request,
    respond,
)
from shiftnas_serve.problem import Problem
from shiftnas_serve.scheduling.pending import place_of

_LENGTH = LENGTH_HEADER.lower().encode()
_EXTENSIONS = ("binary_tensor_data", "classification", *EXTENSIONS)
_INPUTS: list[Tensor] = [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


def _tensors(model: Model) -> dict[str, list[Tensor]]:
    sizes = {CLASSES: [-1, len(model.bundle.labels)]}
    outputs: list[Tensor] = [
        {"name": name, "datatype": datatype, "shape": sizes.get(name, [-1])}
        for name, (datatype, _) in OUTPUTS.items()
    ]
    return {"inputs": _INPUTS, "outputs": outputs}


def oip_routes(state: ServerState) -> list[Route]:
    """The routes of the protocol, for the model that is served."""

    def known(scope: Scope) -> Model:
        """The model that a request names. Raises Problem 404 for any other."""
        model, wanted = state.serving().model, scope["path_params"]
        name, version = wanted["name"], wanted.get("version", model.name.version)
        if name != model.name.name:
            raise Problem(404, f"no model {name!r:.60}; this server has {model.name.name!r}")
        if version != model.name.version:
            raise Problem(404, f"no version {version!r:.60}; it is {model.name.version!r}")
        return model

    async def ready(request: Request) -> Response:
        """Of the server, or of the model that is named."""
        named = {"name": known(request.scope).name.name} if request.path_params else {}
        engine = state.engine
        is_ready = engine is not None and engine.wedged is None and not state.draining
        return JSONResponse({**named, "ready": is_ready}, 200 if is_ready else 503)

    async def metadata(request: Request) -> Response:
        model = known(request.scope)
        document = {"name": model.name.name, "versions": [model.name.version]}
        told = {"platform": "onnx_onnxv1", "precision": model.name.precision}
        return JSONResponse({**document, **told, **_tensors(model)})

    async def infer(scope: Scope, receive: Receive) -> ASGIApp:
        started = time.monotonic()
        headers = scope["state"]["headers"]
        state.keys.check(headers)
        engine, model = state.serving(), known(scope)
        refuse_query(scope["query_string"])
        budgets = read_budgets(scope["headers"])
        lengths = {value for name, value in scope["headers"] if name == _LENGTH}
        if len(lengths) > 1:
            raise Problem(400, f"{LENGTH_HEADER} says several lengths; send it once")
        with engine.room.share() as share:
            body = await read_body(scope, receive, share, state.settings)
            parse = partial(parse_request, body, headers.get(_LENGTH))
            asked = await in_turn(len(body), parse, state.threads)
            del body, parse  # its images are copies
            if asked.model_name not in (None, model.name.name):
                given = f"the body says model {asked.model_name!r:.60}"
                raise Problem(400, f"{given}, the path {model.name.name!r}; name the same in both")
            add_budgets(budgets, asked.budgets)
            share.add(len(asked.images))
            answer = partial(
                engine.answer,
                asked=budgets,
                top_k=0,
                model=model,
                give_up_s=started + state.settings.timeout_s,
                gone=lambda: client_gone(receive),
            )
            count = len(asked.images)
            tasks = [
                asyncio.ensure_future(answer(image, place=place_of(number, count)))
                for number, image in enumerate(asked.images, 1)
            ]
            try:
                every = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
            for one in every:
                state.metrics.observed(one)
            scope["state"]["details"].append(lambda: {"images": [one.log() for one in every]})
            size_bytes = answer_bytes(asked, len(model.bundle.labels))
            write = partial(respond, model.bundle, asked, every)
            return await in_turn(size_bytes, write, state.threads)

    server = {"name": "shiftnas-serve", "version": __version__, "extensions": _EXTENSIONS}
    routes = [
        Route("/v2", JSONResponse(server), methods=["GET"]),
        Route("/v2/health/live", JSONResponse({"live": True}), methods=["GET"]),
        Route("/v2/health/ready", ready),
    ]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [Route(path, metadata), Route(f"{path}/ready", ready)]
        routes.append(Route(f"{path}/infer", Counted(infer, state), methods=["POST"]))
        routes += triton_routes(path, known, _tensors, state)
    return routes
