"""The Python client against a real server, and against one that refuses for a while."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from shiftnas_serve import client as client_module
from shiftnas_serve.client import AsyncClient, Client, retry_after_s
from shiftnas_serve.problem import Problem
from tests.contract.process import ROOT, Server

ANSWER = {
    "predictions": [{"label": "cat", "index": 3, "probability": 0.75}],
    "subnet": {"id": "a" * 12, "flops": 4, "params": 2, "arch": {"depth": [1]}},
    "budget": {"flops": 5, "latency_ms": None, "degraded": False, "of_tomorrow": 1},
    "model": {"name": "m", "version": "v"},
    "request_id": "r",
}


def test_a_photo_within_budgets(alone: Server, bundle, png, tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(png)
    with Client(alone.url) as client:
        low, high = (client.budgets()["flops"][end] for end in ("min", "max"))
        smallest = client.classify(photo, flops=low, top_k=3)
        largest = client.classify(str(photo), latency_ms=10_000)
        assert client.classify(png, flops=f"{high / 1e6:.6f}M").subnet == largest.subnet
        with pytest.raises(Problem, match="below the smallest subnet") as refused:
            client.classify(png, flops=low - 1)
    assert (refused.value.status, refused.value.extra["allowed"]["min_flops"]) == (422, low)
    assert smallest.subnet.flops == low == smallest.budget.flops
    assert len(smallest.predictions) == 3
    assert smallest.label == smallest.predictions[0].label
    assert smallest.model.version == bundle.version
    assert {"decode", "queue", "infer", "build"} <= smallest.timing_ms.keys()
    same = alone.post(png, **{"FLOPs-Budget": str(low)}).json()
    assert same["predictions"][0]["probability"] == pytest.approx(smallest.probability)


def test_many_at_once_without_threads(alone: Server, png):
    async def many() -> list[str]:
        async with AsyncClient(alone.url) as client:
            answers = await asyncio.gather(*(client.classify(png) for _ in range(20)))
            assert (await client.budgets())["model"]["name"] == answers[0].model.name
            return [answer.subnet.id for answer in answers]

    assert len(set(asyncio.run(many()))) == 1


@pytest.mark.parametrize("number", range(2))
def test_the_programs_of_the_documents_run(number, alone: Server, bundle, capsys):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]
    program = program.replace("localhost:8000", alone.url.removeprefix("http://"))
    program = program.replace("imagenet-mobile", bundle.name).replace("100M", str(bundle.max_flops))
    exec(program, {})  # noqa: S102 (the project's own)
    assert "class" in capsys.readouterr().out


def test_the_commands_of_the_documents_run(alone: Server, bundle):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    commands = re.findall(r"^curl .*", text, re.MULTILINE)
    assert commands
    for command in commands:
        given = command.replace("localhost:8000", alone.url).replace("100M", "1G")
        given = given.replace("Latency-Budget: 100", "Latency-Budget: 9000")
        done = subprocess.run(
            ["bash", "-c", given], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert '"predictions":[{' in done.stdout, (command, done.stdout)


# --------------------------------------------------------------------------------- what is refused


KEY = "my-schlüssel-Ω"


def scripted(*script: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[float]]:
    """A server that answers so, one after the other, to whom has a key; when it was asked."""
    turns, asked_s = iter(script), []

    def answer(request: httpx.Request) -> httpx.Response:
        assert dict(request.headers.raw)[b"Authorization"] == f"Bearer {KEY}".encode()
        asked_s.append(time.monotonic())
        turn = next(turns)
        if isinstance(turn, Exception):
            raise turn
        return turn

    return httpx.MockTransport(answer), asked_s


def refusal(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"detail": "later", "request_id": "r"}, headers=headers)


def test_what_passes_is_tried_again_and_no_sooner_than_the_server_says():
    transport, asked_s = scripted(
        refusal(429, **{"Retry-After": "1"}),
        httpx.ConnectError("refused"),
        httpx.Response(200, json=ANSWER),
    )
    with Client("http://there", key=KEY, transport=transport) as client:
        answer = client.classify(b"photo")
    assert (answer.label, answer.budget.flops) == ("cat", 5)
    assert len(asked_s) == 3
    assert asked_s[1] - asked_s[0] >= 1


def test_async_too():
    transport, asked_s = scripted(refusal(503), httpx.Response(200, json=ANSWER))

    async def ask() -> str:
        async with AsyncClient("http://there", key=KEY, transport=transport) as client:
            return (await client.classify(b"photo")).label

    assert asyncio.run(ask()) == "cat"
    assert len(asked_s) == 2


@pytest.mark.parametrize(
    ("script", "times"),
    [
        ([refusal(400)], 1),  # no better the second time
        ([refusal(429, **{"Retry-After": "60"})], 1),  # later than anyone waits
        ([refusal(503)] * 3, 3),
        ([httpx.Response(502, text="<html>")] * 3, 3),
    ],
)
def test_what_stays_refused_is_said(script, times):
    transport, asked_s = scripted(*script)
    with (
        Client("http://there", key=KEY, transport=transport, retries=2, timeout_s=20) as client,
        pytest.raises(Problem) as refused,
    ):
        client.classify(b"photo")
    assert refused.value.status == script[0].status_code
    assert refused.value.detail in ("later", "502 Bad Gateway")
    assert len(asked_s) == times


def test_nobody_there_and_no_photo(tmp_path):
    transport, asked_s = scripted(*[httpx.ConnectError("refused")] * 2)
    with Client("http://there", key=KEY, transport=transport, retries=1) as client:
        with pytest.raises(httpx.ConnectError):
            client.classify(b"photo")
        with pytest.raises(ValueError, match=r"cannot read .*nothing\.png: No such file"):
            client.classify(tmp_path / "nothing.png")
    assert len(asked_s) == 2


@pytest.mark.parametrize("error", [httpx.UnsupportedProtocol, httpx.LocalProtocolError])
def test_a_mistake_in_a_request_is_not_sent_again(error):
    transport, asked_s = scripted(error("what is wrong"))
    with (
        Client("http://there", key=KEY, transport=transport) as client,
        pytest.raises(error, match="what is wrong"),
    ):
        client.classify(b"photo")
    assert len(asked_s) == 1


def test_budgets_in_any_script_reach_the_server():
    transport, asked_s = scripted(refusal(400))
    with (
        Client("http://there", key=KEY, transport=transport) as client,
        pytest.raises(Problem, match="later"),
    ):
        client.classify(b"photo", flops="\uff14M")
    assert len(asked_s) == 1


def test_a_retry_after_is_a_number_or_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < retry_after_s(soon) <= 60
    given = (None, "7", "soon", "Thu, 01 Jan 1970 00:00:00 GMT")
    assert [retry_after_s(text) for text in given] == [0, 7, 0, 0]


class Drops(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of an answer, a byte at a time."""

    def __init__(self, wait) -> None:
        self._wait, self._drops = wait, [b"%c" % byte for byte in json.dumps(ANSWER).encode()]

    def __iter__(self):
        for drop in self._drops:
            self._wait()
            yield drop

    async def __aiter__(self):
        for drop in self._drops:
            await self._wait()
            yield drop


def test_an_answer_that_comes_in_drops_is_not_waited_for_longer(monkeypatch):
    now_s = [0.0]

    def a_second() -> None:
        now_s[0] += 1

    async def a_moment() -> None:
        await asyncio.sleep(0.05)

    def dripping(wait) -> httpx.MockTransport:
        return httpx.MockTransport(lambda _: httpx.Response(200, stream=Drops(wait)))

    monkeypatch.setattr(client_module.time, "monotonic", lambda: now_s[0])
    with Client("http://there", transport=dripping(a_second), timeout_s=1000) as client:
        assert client.classify(b"photo").label == "cat"
    with (
        Client("http://there", transport=dripping(a_second), timeout_s=9) as client,
        pytest.raises(httpx.TimeoutException, match="no whole answer"),
    ):
        client.classify(b"photo")
    monkeypatch.undo()

    async def ask() -> None:
        async with AsyncClient(
            "http://there", transport=dripping(a_moment), timeout_s=0.2
        ) as client:
            await client.classify(b"photo")

    with pytest.raises(httpx.TimeoutException, match="no whole answer"):
        asyncio.run(ask())


class Slow(httpx.BaseTransport):
    """A server that takes a second to read each piece, and notes what it has read."""

    def __init__(self, now_s: list[float]) -> None:
        self._now_s, self.pieces, self.read_s = now_s, list[bytes](), 0.0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["content-length"] == "1000000"
        assert "transfer-encoding" not in request.headers
        self.pieces = []
        for piece in request.stream:
            self._now_s[0] += 1
            self.pieces.append(piece)
        self.read_s = request.extensions["timeout"]["read"]
        return httpx.Response(200, json=ANSWER)


@pytest.mark.parametrize(("timeout_s", "in_time"), [(17.5, True), (5.5, False)])
def test_an_upload_takes_no_more_than_the_time_of_its_call(monkeypatch, timeout_s, in_time):
    now_s, photo = [0.0], bytes(range(250)) * 4000
    monkeypatch.setattr(client_module.time, "monotonic", lambda: now_s[0])
    transport = Slow(now_s)
    with Client("http://there", transport=transport, timeout_s=timeout_s) as client:
        if in_time:
            assert client.classify(photo).label == "cat"
            assert b"".join(transport.pieces) == photo
            assert transport.read_s == timeout_s - len(transport.pieces)
        else:
            with pytest.raises(httpx.TimeoutException, match="in time"):
                client.classify(photo)
            assert now_s[0] == 6.0


def test_the_time_is_of_a_call_with_all_its_tries():
    """Each gets what is left of it."""
    given_s = []

    def answer(request: httpx.Request) -> httpx.Response:
        given_s.append(request.extensions["timeout"]["read"])
        return refusal(503)

    named = {"timeout_s": 5.0, "retries": 2}
    with (
        Client("http://there", transport=httpx.MockTransport(answer), **named) as client,
        pytest.raises(Problem),
    ):
        client.classify(b"photo")

    async def ask() -> None:
        transport = httpx.MockTransport(answer)
        async with AsyncClient("http://there", transport=transport, **named) as client:
            await client.classify(b"photo")

    with pytest.raises(Problem):
        asyncio.run(ask())
    for three in (given_s[:3], given_s[3:]):
        assert three == sorted(three, reverse=True)
        assert three[2] < three[0] - 0.1 < 5.0
