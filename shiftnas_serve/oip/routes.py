"""Open Inference Protocol v2: ``/v2/models/NAME/infer`` beside ``/classify``.

The same model for clients that speak the protocol of KServe and Triton, with Triton's binary tensor
and classification extensions. Input ``image``: BYTES, encoded JPEG, PNG or WebP (base64 where the
tensor is JSON). Budgets are request parameters named as the headers are, ``flops_budget`` and
``latency_budget``, or the headers themselves.

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
from shiftnas_serve.http.classify import client_gone, counted
from shiftnas_serve.http.options import read_budgets
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.library import parse_budgets
from shiftnas_serve.oip.wire import LENGTH_HEADER, parse_request, respond
from shiftnas_serve.problem import Problem

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration")
PLATFORM = "onnx_onnxv1"
_OUTPUTS = {"probabilities": "FP32", "subnet_id": "BYTES", "subnet_flops": "INT64"}


def oip_routes(state: ServerState) -> list[Route]:
    """The routes of the protocol, for the model that is served."""

    def known(scope: Scope) -> Model:
        """The model that a request names. Raises Problem 404 for any other."""
        model, wanted = state.serving().model, scope["path_params"]
        name, version = wanted["name"], wanted.get("version")
        if name != model.name.name:
            raise Problem(404, f"no model {name!r:.60}; this server has {model.name.name!r}")
        if version is not None and version != model.name.version:
            raise Problem(404, f"no version {version!r:.60}; it is {model.name.version!r}")
        return model

    def is_ready() -> bool:
        return state.engine is not None and state.engine.wedged is None and not state.draining

    async def server(request: Request) -> Response:
        return JSONResponse(
            {"name": "shiftnas-serve", "version": __version__, "extensions": EXTENSIONS}
        )

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": is_ready()}, 200 if is_ready() else 503)

    async def model_ready(request: Request) -> Response:
        document = {"name": known(request.scope).name.name, "ready": is_ready()}
        return JSONResponse(document, 200 if is_ready() else 503)

    async def metadata(request: Request) -> Response:
        model = known(request.scope)
        shapes = {name: [-1] for name in _OUTPUTS}
        shapes["probabilities"] = [-1, len(model.bundle.labels)]
        return JSONResponse(
            {
                "name": model.name.name,
                "versions": [model.name.version],
                "platform": PLATFORM,
                "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": name, "datatype": datatype, "shape": shapes[name]}
                    for name, datatype in _OUTPUTS.items()
                ],
            }
        )

    async def config(request: Request) -> Response:
        model = known(request.scope)
        classes = len(model.bundle.labels)
        return JSONResponse(
            {
                "name": model.name.name,
                "platform": PLATFORM,
                # images are put together here, whatever requests they came in
                "max_batch_size": 0,
                "input": [{"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}],
                "output": [
                    {
                        "name": name,
                        "data_type": f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}",
                        "dims": [-1, classes] if name == "probabilities" else [-1],
                    }
                    for name, datatype in _OUTPUTS.items()
                ],
            }
        )

    async def infer(scope: Scope, receive: Receive) -> ASGIApp:
        started = time.monotonic()
        headers = scope["state"]["headers"]
        state.charge(headers, 1)
        engine, model = state.serving(), known(scope)
        with engine.room.share() as share:
            body = await read_body(scope, receive, state.body_limits, share)
            parse = partial(parse_request, body, headers.get(LENGTH_HEADER.lower()), list(_OUTPUTS))
            asked = await in_turn(len(body), parse, state.threads)
            del body, parse  # its images are copies
            budgets = read_budgets(scope["headers"])
            for name, value in parse_budgets(asked.budgets).items():
                budgets[name] = min(value, budgets.get(name, value))
            share.add(len(asked.images))
            state.charge(headers, len(asked.images) - 1)
            answer = partial(
                engine.answer,
                asked=budgets,
                top_k=0,
                model=model,
                give_up_s=started + state.settings.timeout_s,
                gone=lambda: client_gone(receive),
            )
            tasks = [asyncio.ensure_future(answer(image)) for image in asked.images]
            try:
                every = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        for one in every:
            state.metrics.observed(one)
        scope["state"]["details"].append(lambda: {"images": [one.log() for one in every]})
        return respond(model.bundle, asked, every)

    get = {
        "/v2": server,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        "/v2/models/{name}": metadata,
        "/v2/models/{name}/versions/{version}": metadata,
        "/v2/models/{name}/config": config,
        "/v2/models/{name}/versions/{version}/config": config,
        "/v2/models/{name}/ready": model_ready,
        "/v2/models/{name}/versions/{version}/ready": model_ready,
    }
    infer_paths = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
    return [Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()] + [
        Route(path, counted(infer, state), methods=["POST"]) for path in infer_paths
    ]
