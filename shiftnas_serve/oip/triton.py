"""What Triton's clients ask for beside the protocol: a model's configuration and its statistics.

Source: Triton's extension_model_configuration.md and extension_statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from shiftnas_serve.engine.model import Model
from shiftnas_serve.http.state import ServerState

Tensor = dict[str, Any]
EXTENSIONS = ("model_configuration", "statistics")
# Triton's name of a stage, and ours.
_STAGES = {"queue": "queue", "compute_input": "decode", "compute_infer": "infer"}


def triton_routes(
    path: str,
    known: Callable[[Scope], Model],
    tensors: Callable[[Model], dict[str, list[Tensor]]],
    state: ServerState,
) -> list[Route]:
    """Below a model's ``path``. ``known``: the model of a request; ``tensors``: its metadata."""

    async def config(request: Request) -> Response:
        model = known(request.scope)
        of = {kind: [*map(_as_config, every)] for kind, every in tensors(model).items()}
        # images are put together here, whatever requests they came in
        batch = {"max_batch_size": 0, "model_transaction_policy": {"decoupled": False}}
        document = {"name": model.name.name, "platform": "onnx_onnxv1", **batch}
        return JSONResponse({**document, "input": of["inputs"], "output": of["outputs"]})

    async def stats(request: Request) -> Response:
        """Of this process, since it started, over all versions; times in nanoseconds."""
        name = known(request.scope).name
        stages = {one: state.metrics.stage(stage) for one, stage in _STAGES.items()}
        count = stages["compute_infer"]["count"]
        told = {"name": name.name, "version": name.version, "inference_count": count}
        return JSONResponse({"model_stats": [{**told, "inference_stats": stages}]})

    return [Route(f"{path}/config", config), Route(f"{path}/stats", stats)]


def _as_config(tensor: Tensor) -> Tensor:
    kind = tensor["datatype"].replace("BYTES", "STRING")
    return {"name": tensor["name"], "data_type": f"TYPE_{kind}", "dims": tensor["shape"]}
