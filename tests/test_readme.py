"""What README.md promises whoever follows it: the photo, the commands, the answer."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from starlette.types import Message

from shiftnas_serve import Engine, load
from shiftnas_serve.http.answers import classification
from shiftnas_serve.settings import DEFAULT_BUNDLE

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REQUEST_ID = "bab118557da1f382bd4d2416ba3093cf"
COMMANDS = [shlex.split(line) for line in README.splitlines() if line.startswith("curl ")]


def test_the_quick_start_sends_files_that_are_there():
    assert COMMANDS
    for command in COMMANDS:
        assert (ROOT / command[command.index("-T") + 1]).is_file()


@cache
def engine() -> Engine:
    return load(DEFAULT_BUNDLE, prebuild=False)


def answer_to(command: list[str]) -> dict:
    """What the server gives to one of README's commands, without HTTP."""
    (budget,) = [one.partition(": ")[2] for one in command if one.startswith("FLOPs-Budget")]
    (top_k,) = re.findall(r"top_k=(\d+)", command[-1])
    photo = ROOT / command[command.index("-T") + 1]
    result = engine().classify(photo, flops=budget, top_k=int(top_k))
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("its request is not read")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(classification(result, REQUEST_ID)({}, receive, send))
    return json.loads(sent[-1]["body"])


def test_the_answer_is_what_the_server_gives():
    given = answer_to(COMMANDS[0])
    (block,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    shown = json.loads(block)
    assert keys(shown) == keys(given)
    for of_readme, of_server in zip(shown["predictions"], given["predictions"], strict=True):
        probability = pytest.approx(of_server.pop("probability"), abs=1e-3)  # as processors differ
        assert of_readme.pop("probability") == probability
    assert shown == given


def test_a_larger_budget_gets_the_larger_subnet_that_is_named():
    smaller, larger = (answer_to(command)["subnet"]["flops"] for command in COMMANDS)
    (megaflops,) = re.findall(r"The second comes from a subnet of (\d+) MFLOPs", README)
    assert smaller < larger
    assert round(larger / 1e6) == int(megaflops)


def keys(value: object) -> object:
    """Names in their order, types of values."""
    if isinstance(value, dict):
        return [(name, keys(one)) for name, one in value.items()]
    return [keys(one) for one in value] if isinstance(value, list) else type(value)
