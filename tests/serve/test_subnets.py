"""Subnets by their ids and as files to take away: no server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shiftnas_serve.planner import Planner, describe
from shiftnas_serve.subnets import Downloads, find_subnet, read_onnx, subnet_route
from starlette.requests import Request
from starlette.types import Message

from models.bundle.folder import Bundle, load_bundle
from shiftnas_serve import subnets
from shiftnas_serve.problem import Problem


def text_of(bundle: Bundle, arch: Any) -> str:
    return json.dumps(bundle.space.arch_to_json(arch))


def test_a_process_that_never_answered_a_subnet_finds_it_by_its_arch(vit: Bundle):
    """Another replica did, of a space whose answers are not stored."""
    arch = vit.space.from_indices([number % 2 for number in range(len(vit.space.decisions))])
    assert arch not in vit.archs()
    answered = describe(vit, arch)
    fresh = Planner(vit, None)
    with pytest.raises(Problem, match=r"\?arch=") as unknown:
        find_subnet(vit, fresh, answered.id, None)
    assert unknown.value.status == 404
    document = json.loads(answered.described)["arch"]
    assert find_subnet(vit, fresh, answered.id, json.dumps(document)) == answered
    with pytest.raises(Problem, match=f"is subnet {answered.id}, not '0123'") as other:
        find_subnet(vit, fresh, "0123", json.dumps(document))
    assert other.value.status == 400


@pytest.mark.parametrize(
    "text", ["", "7", "[]", '{"depth": NaN}', '{"x": 1}', "[" * 50_000, '"' + "9" * 5000, "\ud800"]
)
def test_what_is_no_arch_is_refused(vit: Bundle, text):
    with pytest.raises(Problem) as refused:
        find_subnet(vit, Planner(vit, None), "0123", text)
    assert refused.value.status == 400
    assert len(refused.value.detail) < 300


def test_without_statistics_an_arch_is_no_subnet(bundle: Bundle):
    planner = Planner(bundle, None)
    space = bundle.space
    every = (space.from_indices([n] * len(space.decisions)) for n in range(2))
    unknown = next(arch for arch in every if arch not in bundle.archs())
    with pytest.raises(Problem, match=r"budget$") as refused:
        find_subnet(bundle, planner, space.arch_id(unknown), text_of(bundle, unknown))
    assert refused.value.status == 404
    known = bundle.archs()[0]
    assert find_subnet(bundle, planner, space.arch_id(known), None).arch == known


def test_a_download_is_what_the_bundle_with_all_weights_builds(bundle, bundle_folder, vit_folder):
    for folder in (bundle_folder, vit_folder):
        full, bare = load_bundle(folder), load_bundle(folder, weights=False)
        for arch in (full.archs()[0], full.archs()[-1]):
            built = full.build_onnx(arch).SerializeToString()
            assert read_onnx(folder, bare, arch) == built


class Asked:
    """A route with all that it needs, and what its answers sent."""

    def __init__(self, bundle: Bundle) -> None:
        self.charged = 0
        keys = SimpleNamespace(check=lambda headers: None)
        admission = SimpleNamespace(keys=keys, charge=self._charge)
        classifier = SimpleNamespace(admission=admission)
        revision: Any = SimpleNamespace(
            bundle=bundle, planner=Planner(bundle, None), classifier=classifier, folder=Path()
        )
        self._route, self._id = subnet_route(revision, Downloads()), bundle.space.arch_id
        self._arch = bundle.archs()[0]

    def _charge(self, request: Request, images: int) -> None:
        self.charged += images

    async def download(self, taken: asyncio.Event | None = None) -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)
            if taken is not None:
                await taken.wait()

        async def receive() -> Message:
            raise AssertionError("nothing to receive")

        state, path = {"headers": {}}, {"id": self._id(self._arch)}
        scope = {"type": "http", "query_string": b"format=onnx", "state": state, "headers": []}
        request = Request({**scope, "path_params": path})
        answer = await self._route.endpoint(request)
        await answer(request.scope, receive, send)
        return sent


def test_downloads_are_charged_and_one_at_a_time_until_the_client_has_all(bundle, monkeypatch):
    data = bytes(range(256)) * 12_000
    monkeypatch.setattr(subnets, "read_onnx", lambda *given: data)

    async def test() -> None:
        asked, taken = Asked(bundle), asyncio.Event()
        first = asyncio.ensure_future(asked.download(taken))
        await asyncio.sleep(0.05)
        with pytest.raises(Problem) as second:
            await asked.download()
        assert second.value.status == 429
        assert "Retry-After" in second.value.headers
        assert asked.charged == 1
        taken.set()
        start, *pieces = await first
        assert dict(start["headers"])[b"content-length"] == b"%d" % len(data)
        assert b"".join(piece["body"] for piece in pieces) == data
        assert [piece["more_body"] for piece in pieces] == [True, True, False]
        assert len(await asked.download()) == 4
        assert asked.charged == 2

    asyncio.run(test())


def test_a_download_that_fails_lets_the_next_one_in(bundle, monkeypatch):
    def fail(*given: object) -> bytes:
        raise MemoryError

    async def test() -> None:
        asked = Asked(bundle)
        for _ in range(2):
            with pytest.raises(MemoryError):
                await asked.download()

    monkeypatch.setattr(subnets, "read_onnx", fail)
    asyncio.run(test())
