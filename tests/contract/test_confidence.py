"""A request that says how sure it wants the answer to be: what is spent, and that it is said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from models.bundle.folder import Bundle
from shiftnas_serve.client import Client
from tests.contract.problem import assert_problem
from tests.contract.process import PNG, Server

NEVER, ALWAYS = "0.999999999", "0.01"
"""Confidences: no answer is as sure; every answer is, of ten classes."""


def ask(client: httpx.Client, png: bytes, confidence: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return client.post("/classify", content=png, headers={**PNG, "Confidence": confidence, **named})


def test_a_sure_answer_costs_the_first_subnet_and_another_both(client, bundle: Bundle, png):
    assert bundle.confidence is not None
    _, first, second = bundle.confidence.pairs[-1]
    for confidence, subnet, spent in ((ALWAYS, first, first), (NEVER, second, first + second)):
        answer = ask(client, png, confidence)
        body = answer.json()
        assert body["subnet"]["flops"] == int(answer.headers["Served-FLOPs"]) == subnet
        assert body["budget"]["spent_flops"] == int(answer.headers["Spent-FLOPs"]) == spent
        assert body["budget"]["confidence"] == float(confidence)
        assert body["budget"]["degraded"] is False


def test_what_is_spent_never_exceeds_a_budget(server: Server, bundle: Bundle, png):
    rng = np.random.default_rng(0)
    budgets = rng.integers(bundle.min_flops, int(2.2 * bundle.max_flops), 200).tolist()

    def check(some: list[int]) -> set[bool]:
        both = set()
        with server.client() as client:
            for number, budget in enumerate(some):
                answer = ask(client, png, (NEVER, ALWAYS)[number % 2], FLOPs_Budget=str(budget))
                body = answer.json()
                spent = int(answer.headers["Spent-FLOPs"])
                assert spent == body["budget"]["spent_flops"] <= budget
                both.add(spent > body["subnet"]["flops"])
        return both

    with ThreadPoolExecutor(4) as pool:
        seen = pool.map(check, [budgets[start::4] for start in range(4)])
    assert set().union(*seen) == {True, False}


@pytest.mark.parametrize("text", ["", "0", "1", "1.2", "-0.5", "nan", "80%", "0.8.1", "high"])
def test_what_is_no_confidence_is_400(client, png, text):
    assert_problem(ask(client, png, text), 400, "Confidence")


def test_a_confidence_stands_once(client, png):
    fields = [("Content-Type", "image/png"), ("Confidence", "0.8"), ("Confidence", "0.8")]
    answer = client.post("/classify", content=png, headers=fields)
    assert_problem(answer, 400, "several times")


@pytest.mark.parametrize("header", ["Confidense", "X-Confidence", "Confidences", "Min-Confidence"])
def test_a_misspelt_confidence_is_refused_and_the_right_name_said(client, png, header):
    answer = client.post("/classify", content=png, headers={**PNG, header: "0.8"})
    assert "did you mean Confidence" in assert_problem(answer, 400, header)["detail"]
    answer = client.post("/classify?confidence=0.8", content=png, headers=PNG)
    assert "Confidence" in assert_problem(answer, 400, "confidence")["detail"]


def test_a_latency_budget_with_time_leaves_both_steps(client, png):
    body = ask(client, png, NEVER, Latency_Budget="20000").json()
    assert body["budget"]["spent_flops"] > body["subnet"]["flops"]
    assert body["budget"]["degraded"] is False


def test_the_inference_protocol_says_what_was_spent(client, bundle: Bundle, b64):
    assert bundle.confidence is not None
    _, first, second = bundle.confidence.pairs[-1]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [b64, b64]}
    path = f"/v2/models/{bundle.name}/infer"
    for confidence, spent in ((ALWAYS, first), (NEVER, first + second)):
        asked = {"inputs": [tensor], "parameters": {"confidence": float(confidence)}}
        outputs = {one["name"]: one for one in client.post(path, json=asked).json()["outputs"]}
        assert outputs["spent_flops"]["data"] == [spent, spent]
    twice = client.post(path, json=asked, headers={"Confidence": "0.8"})
    assert_problem(twice, 400, "several times")


def test_the_client_asks_for_it(server: Server, png):
    with Client(server.url) as client:
        answer = client.classify(png, confidence=float(NEVER))
    assert answer.budget.spent_flops > answer.subnet.flops
    assert answer.budget.confidence == float(NEVER)


def test_it_is_documented_and_what_it_may_cost_is_listed(client, bundle: Bundle):
    document = client.get("/openapi.json").json()
    parameters = document["paths"]["/classify"]["post"]["parameters"]
    assert "Confidence" in {one["name"] for one in parameters}
    assert "spent_flops" in document["components"]["schemas"]["Budget"]["properties"]
    listed = client.get("/budgets").json()["confidence"]
    assert listed["images"] == 25
    rows = [(r["budget_flops"], r["first_flops"], r["second_flops"]) for r in listed["pairs"]]
    assert rows == list(bundle.confidence.pairs)
