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

from models.bundle.folder import Bundle
from shiftnas_serve.body import in_turn, read_body
from shiftnas_serve.classify import Classifier, read_budgets
from shiftnas_serve.oip_wire import LENGTH_HEADER, parse_request, respond
from shiftnas_serve.problem import Problem
from shiftnas_serve.revisions import Revisions
from shiftnas_serve.workers import Workers

EXTENSIONS = ("binary_tensor_data", "classification")
PLATFORM = "onnx_onnxv1"
# Of one request, while others wait their turn on the event loop and in the threads.
_PREPARED_AT_ONCE = 2


def oip_routes(
    bundle: Bundle, workers: Workers, classifier: Classifier, revisions: Revisions
) -> list[Route]:
    """The routes of the protocol for one model."""
    outputs: dict[str, tuple[str, list[int]]] = {
        "probabilities": ("FP32", [-1, len(bundle.labels)]),
        "subnet_id": ("BYTES", [-1]),
        "subnet_flops": ("INT64", [-1]),
    }

    def known(request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != bundle.name:
            raise Problem(404, f"no model {name!r:.60}; this server has {bundle.name!r}")
        if version is not None and version != bundle.version:
            raise Problem(404, f"no version {version!r:.60}; this server has {bundle.version!r}")

    async def server(request: Request) -> Response:
        body = {"name": "shiftnas-serve", "version": bundle.version, "extensions": EXTENSIONS}
        return JSONResponse(body)

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        is_ready = revisions.ready and not workers.draining
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(request: Request) -> Response:
        known(request)
        is_ready = revisions.ready and not workers.draining
        return JSONResponse({"name": bundle.name, "ready": is_ready}, 200 if is_ready else 503)

    async def model(request: Request) -> Response:
        known(request)
        return JSONResponse(
            {
                "name": bundle.name,
                "versions": [bundle.version],
                "platform": PLATFORM,
                "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": name, "datatype": datatype, "shape": shape}
                    for name, (datatype, shape) in outputs.items()
                ],
            }
        )

    async def infer(request: Request) -> Response:
        started = time.monotonic()
        admission = classifier.admission
        with admission.admitted(request) as share:
            known(request)
            body = await read_body(request, classifier.body_limits, share)
            length = request.state.headers.get(LENGTH_HEADER.lower())
            parse = partial(parse_request, body, length, tuple(outputs))
            asked = await in_turn(len(body), parse, classifier.threads)
            del body, parse  # its images are copies
            budgets = read_budgets({**request.state.headers, **asked.budgets})
            with admission.admitted_images(request, len(asked.images)):
                turns = asyncio.Semaphore(_PREPARED_AT_ONCE)
                tasks = [
                    asyncio.ensure_future(
                        classifier.classify(image, budgets, started, request, turns)
                    )
                    for image in asked.images
                ]
                try:
                    every = await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
            request.state.details.append(lambda: {"images": [one.log() for one in every]})
            return respond(bundle, asked, every)

    get = {
        "/v2": server,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        "/v2/models/{name}": model,
        "/v2/models/{name}/versions/{version}": model,
        "/v2/models/{name}/ready": model_ready,
        "/v2/models/{name}/versions/{version}/ready": model_ready,
    }
    infer_paths = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
    return [Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()] + [
        Route(path, infer, methods=["POST"]) for path in infer_paths
    ]
