"""More than can be answered, and bad requests among good ones: real processes, no clocks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from models.bundle.folder import Bundle
from tests.serve.conftest import (
    PNG,
    RunningServer,
    encoded,
    picture,
    serving,
)


def post_all(
    server: RunningServer,
    requests: Sequence[tuple[bytes, dict[str, str]]],
    meanwhile: Callable[[], Awaitable[None]],
) -> list[httpx.Response]:
    """All at once, and something else once they are on their way."""

    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(requests))
        async with httpx.AsyncClient(
            base_url=server.url, timeout=30, limits=limits, verify=False
        ) as client:
            asked = [
                asyncio.create_task(client.post("/classify", content=body, headers=headers))
                for body, headers in requests
            ]
            await meanwhile()
            return list(await asyncio.gather(*asked))

    return asyncio.run(run())


async def nothing() -> None:
    pass


@pytest.fixture(scope="module")
def patient(bundle_folder: Path) -> Iterator[RunningServer]:
    """One server that keeps many waiting."""
    with serving(bundle_folder, "--max-waiting", "1000", "--timeout-s", "20") as running:
        yield running


def test_what_cannot_be_in_time_is_refused_and_the_rest_is_answered(patient, png):
    """A worker stands still, and so much is asked that not even the smallest would be in time."""
    (worker,) = patient.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    unhurried = [(png, {**PNG, "FLOPs-Budget": "1M"})] * 10
    hurried = [(png, {**PNG, "Latency-Budget": "6"})] * 300

    async def go_on() -> None:
        await asyncio.sleep(1.0)
        os.kill(worker, signal.SIGCONT)

    answers = post_all(patient, [*unhurried, *hurried], go_on)
    first, rest = answers[: len(unhurried)], answers[len(unhurried) :]
    assert [answer.status_code for answer in first] == [200] * len(unhurried)
    assert {answer.status_code for answer in rest} <= {200, 429, 504}
    # On a machine that is busy otherwise, their time is over before one of them can be sent.
    told = ("no subnet would answer in time", "over before it was sent")
    shed = [one for one in rest if one.status_code != 200 and one.json()["detail"].endswith(told)]
    assert shed
    for answer in shed:
        assert int(answer.headers["Retry-After"]) >= 1
    after = patient.client.post("/classify", content=png, headers={**PNG, "Latency-Budget": "9e3"})
    assert after.status_code == 200


def test_answers_to_a_crowd_name_the_subnet_that_ran(patient, bundle: Bundle, png):
    """Jobs shrink when their turn comes; what is said of them is what happened."""
    bound = (bundle.min_flops + bundle.max_flops) // 2
    requests = [(png, {**PNG, "Latency-Budget": "400"})] * 100
    requests += [(png, {**PNG, "Latency-Budget": "400", "FLOPs-Budget": str(bound)})] * 100
    answers = post_all(patient, requests, nothing)
    assert {answer.status_code for answer in answers} <= {200, 429, 504}
    flops = {bundle.space.arch_id(arch): bundle.space.flops(arch) for arch in bundle.archs()}
    within = bundle.space.flops(bundle.answer(bound))
    for place, answer in enumerate(answers):
        if answer.status_code != 200:
            continue
        most = bundle.max_flops if place < 100 else within
        body = answer.json()
        served = body["subnet"]["flops"]
        assert int(answer.headers["Served-FLOPs"]) == served == flops[body["subnet"]["id"]]
        assert served <= most
        assert body["budget"]["degraded"] or served == most
    assert sum(answer.status_code == 200 for answer in answers) > 20


def test_damaged_images_in_a_crowd_hurt_nobody(server: RunningServer):
    photos = [encoded(picture(seed=seed)) for seed in range(8)]
    alone = [server.client.post("/classify", content=one, headers=PNG).json() for one in photos]
    damaged = photos[0][: len(photos[0]) // 2]
    requests = [(damaged if n % 3 == 2 else photos[n % 8], PNG) for n in range(96)]
    answers = post_all(server, requests, nothing)
    for place, answer in enumerate(answers):
        if place % 3 == 2:
            assert answer.status_code == 422
        else:
            assert answer.status_code == 200
            assert answer.json()["predictions"] == alone[place % 8]["predictions"]
