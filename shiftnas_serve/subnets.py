"""Subnets: ``GET /subnets/{id}``, one subnet as JSON or as an ONNX model to take away.

An id is a hash, so a process knows those that it lists or has answered itself. Others are found by
the arch that every answer names, which any replica can check against the id.

The HTTP process keeps no weights. For a download it reads the parts that the subnet has, in a
thread of its own, one at a time: what is read is as large as the subnet, and written once more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from models.bundle.files import STATISTICS, SUPERNET, StoredArrays
from models.bundle.folder import Bundle
from models.bundle.value import SHARED
from models.space.arch import Arch
from shiftnas_serve.planner import Planner, Subnet, describe
from shiftnas_serve.problem import Problem
from shiftnas_serve.revisions import Revision

_PIECE_BYTES = 1_048_576
# A client that takes longer keeps everyone else waiting.
_SEND_S = 600.0


class Downloads:
    """The one download that an HTTP process may have."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="download")
        self._taken = False

    @contextmanager
    def turn(self) -> Iterator[ThreadPoolExecutor]:
        """Raises Problem 429 while another has it."""
        if self._taken:
            detail = "another subnet is being downloaded from this server; try again"
            raise Problem(429, detail, headers={"Retry-After": "5"})
        self._taken = True
        try:
            yield self._thread
        finally:
            self._taken = False


def subnet_route(revision: Revision, downloads: Downloads) -> Route:
    """The route for one version of the bundle."""
    bundle, admission = revision.bundle, revision.classifier.admission

    async def subnet(request: Request) -> ASGIApp:
        admission.keys.check(request.state.headers)
        identity, query = request.path_params["id"], request.query_params
        wanted = query.get("format", "json")
        if wanted not in ("json", "onnx"):
            raise Problem(400, f"format={wanted!r:.40} is not one of json, onnx")
        found = find_subnet(bundle, revision.planner, identity, query.get("arch"))
        if wanted == "onnx":
            return _download(request, revision, found, downloads)
        described = json.loads(found.described)
        return JSONResponse({**described, "resolution": found.side, "model": revision.model})

    return Route("/subnets/{id}", subnet, methods=["GET"])


def find_subnet(bundle: Bundle, planner: Planner, identity: str, arch_text: str | None) -> Subnet:
    """The subnet of an id, known here or described by its arch as JSON.

    Raises Problem 404 for one that is neither, 400 for an arch that is none or has another id.
    """
    found = planner.subnet(identity)
    if found is not None:
        return found
    only_stored = bool(bundle.space.norms)  # no other arch has statistics
    if arch_text is None or only_stored:
        hint = "" if only_stored else "; add ?arch= and the subnet.arch of the answer that named it"
        raise Problem(404, f"no subnet {identity!r:.40}; /budgets lists subnets by budget{hint}")
    try:
        document = json.loads(arch_text)
        if not isinstance(document, dict):
            raise ValueError("send a JSON object")
        arch = bundle.space.arch_from_json(document)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"arch is none of {bundle.space.name}: {str(error)[:200]}") from None
    if bundle.space.arch_id(arch) != identity:
        actual = bundle.space.arch_id(arch)
        raise Problem(400, f"this arch is subnet {actual}, not {identity!r:.40}")
    return describe(bundle, arch)


def _download(
    request: Request, revision: Revision, subnet: Subnet, downloads: Downloads
) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with downloads.turn() as thread:
            revision.classifier.admission.charge(request, 1)
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(
                thread, read_onnx, revision.folder, revision.bundle, subnet.arch
            )
            name = f'attachment; filename="{revision.bundle.name}-{subnet.id}.onnx"'
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"content-length", b"%d" % len(data)),
                (b"content-disposition", name.encode("latin-1", "replace")),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            # In pieces, each when the client has taken the last.
            async with asyncio.timeout(_SEND_S):
                for at in range(0, len(data), _PIECE_BYTES):
                    body = data[at : at + _PIECE_BYTES]
                    more = at + _PIECE_BYTES < len(data)
                    await send({"type": "http.response.body", "body": body, "more_body": more})

    return answer


def read_onnx(folder: Path, bundle: Bundle, arch: Arch) -> bytes:
    """A subnet of ``bundle``, which has no weights, from its files at ``folder``."""
    statistics: dict[str, np.ndarray] = {}
    if bundle.space.norms:
        with StoredArrays(folder / STATISTICS) as stored:
            names = set(stored)
            needed = names if SHARED in names else {bundle.space.arch_id(arch)}
            statistics = {name: stored[name][:] for name in needed}
    with StoredArrays(folder / SUPERNET) as weights:
        model = replace(bundle, weights=weights, statistics=statistics).build_onnx(arch)
    return model.SerializeToString()
