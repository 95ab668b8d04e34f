"""What README.md promises whoever follows it: the photo, the commands, the answer."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from models.bundle import load_bundle
from shiftnas_serve.answer import AnswerWriter, Classified, softmax
from shiftnas_serve.frames import Done
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.planner import Planner
from shiftnas_serve.runtimes import build_runtime
from shiftnas_serve.settings import DEFAULT_BUNDLE

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in README.splitlines() if line.startswith("curl ")]


def test_the_quick_start_sends_files_that_are_there():
    assert COMMANDS
    for command in COMMANDS:
        assert (ROOT / command[command.index("-T") + 1]).is_file()


def test_the_answer_is_what_the_server_gives():
    command = COMMANDS[0]
    bundle = load_bundle(DEFAULT_BUNDLE)
    (budget,) = [one.partition(": ")[2] for one in command if one.startswith("FLOPs-Budget")]
    assert budget == "4M"
    (top_k,) = re.findall(r"top_k=(\d+)", command[-1])

    planner = Planner(bundle, None)
    planner.latency = LatencyTable.of([(1e6, 1.0), (2e7, 2.0)])
    plan = planner.plan({"flops": 4_000_000}, 0.0)
    data = (ROOT / command[command.index("-T") + 1]).read_bytes()
    side = plan.subnet.side
    largest = bundle.space.resolution(bundle.space.largest)
    image = bundle.preprocess.array(bundle.preprocess.decode(data, largest), side)
    session = build_runtime("onnxruntime", "cpu", 1).build(bundle, plan.subnet.arch)
    (logits,) = session.run(image[None])
    done = Done(0, logits, 0.0, 0.0, 0.0, 0.0, 1, "built", plan.subnet.key)
    one = Classified(plan, done, 0.0, softmax(logits))
    request_id = "bab118557da1f382bd4d2416ba3093cf"
    given = json.loads(AnswerWriter(bundle).write(one, int(top_k), request_id).body)

    (block,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    shown = json.loads(block)
    assert keys(shown) == keys(given)
    for of_readme, of_server in zip(shown["predictions"], given["predictions"], strict=True):
        probability = pytest.approx(of_server.pop("probability"), abs=1e-3)  # as processors differ
        assert of_readme.pop("probability") == probability
    assert shown == given


def keys(value: object) -> object:
    """Names in their order, types of values."""
    if isinstance(value, dict):
        return [(name, keys(one)) for name, one in value.items()]
    return [keys(one) for one in value] if isinstance(value, list) else type(value)
