"""What a request may ask for, and that it never gets more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from models.bundle.folder import Bundle
from tests.contract.problem import assert_problem
from tests.contract.process import PNG, Server


def ask(client: httpx.Client, png: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return client.post("/classify", content=png, headers={**PNG, **named})


def test_headers_without_end_are_not_looked_at(client, png):
    many = {f"X-{number:04x}": "1" for number in range(101)}
    refused = ask(client, png, **many)
    assert_problem(refused, 431, "header fields; 100 are allowed")
    del many["X-0000"], many["X-0001"], many["X-0002"]
    assert ask(client, png, **dict(list(many.items())[:80])).status_code == 200


def test_an_answer_has_all_that_the_contract_names(client, bundle: Bundle, png):
    response = ask(client, png, FLOPs_Budget="0.5M", Request_Id="abc-1")
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"predictions", "subnet", "budget", "model", "request_id"}
    assert len(body["predictions"]) == 5
    assert set(body["predictions"][0]) == {"label", "index", "probability"}
    assert body["subnet"]["flops"] <= 500_000
    arch = bundle.space.arch_from_json(body["subnet"]["arch"])
    assert body["subnet"]["id"] == bundle.space.arch_id(arch)
    assert body["subnet"]["params"] == bundle.space.params(arch)
    assert body["subnet"]["flops"] == bundle.space.flops(arch)
    assert body["budget"] == {
        "flops": 500_000,
        "latency_ms": None,
        "confidence": None,
        "degraded": False,
        "spent_flops": body["subnet"]["flops"],
    }
    named = {"name": bundle.name, "version": bundle.version, "precision": "fp32"}
    assert body["model"] == named
    assert body["request_id"] == response.headers["Request-Id"] == "abc-1"
    assert response.headers["Served-FLOPs"] == str(body["subnet"]["flops"])
    assert response.headers["Spent-FLOPs"] == response.headers["Served-FLOPs"]
    timing = response.headers["Server-Timing"]
    assert all(f"{stage};dur=" in timing for stage in ("decode", "queue", "infer", "build"))


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("1000000", 1_000_000),
        ("1e6", 1_000_000),
        ("0.9M", 900_000),
        ("900k", 900_000),
        ("0.0009G", 900_000),
        ("900K", 900_000),
    ],
)
def test_flops_budgets_as_people_write_them(client, png, text, flops):
    body = ask(client, png, FLOPs_Budget=text).json()
    assert body["budget"]["flops"] == flops
    assert body["subnet"]["flops"] <= flops


def test_no_budget_and_a_huge_one_get_the_largest_subnet(client, bundle: Bundle, png):
    for headers in ({}, {"FLOPs_Budget": "9G"}, {"FLOPs_Budget": "1e999"}):
        assert ask(client, png, **headers).json()["subnet"]["flops"] == bundle.max_flops


@pytest.mark.parametrize("text", ["1k", "0"])
def test_a_budget_below_the_smallest_subnet_names_the_range(client, bundle: Bundle, png, text):
    body = assert_problem(ask(client, png, FLOPs_Budget=text), 422, "smallest subnet")
    assert body["allowed"] == {"min_flops": bundle.min_flops, "max_flops": bundle.max_flops}


@pytest.mark.parametrize(
    "text", ["", "abc", "-1", "1M1", "1e6M", "nan", "inf", "0x10", "1;5M", "1_000_000", "4" * 99]
)
@pytest.mark.parametrize("header", ["FLOPs-Budget", "Latency-Budget"])
def test_garbage_in_a_budget_is_400(client, png, header, text):
    assert_problem(ask(client, png, **{header: text}), 400, header)


def test_latency_budgets_bind_with_flops_budgets(client, png):
    body = ask(client, png, Latency_Budget="10000", FLOPs_Budget="1M").json()
    assert body["subnet"]["flops"] <= 1_000_000
    assert (body["budget"]["flops"], body["budget"]["latency_ms"]) == (1_000_000, 10000)
    refused = ask(client, png, Latency_Budget="0.0001")
    assert assert_problem(refused, 422, "smallest subnet")["allowed"]


def test_budgets_that_nobody_has_seen_are_never_exceeded(server: Server, bundle: Bundle, png):
    rng = np.random.default_rng(0)
    budgets = rng.integers(bundle.min_flops, int(1.05 * bundle.max_flops), 400)

    def check(some: np.ndarray) -> None:
        with server.client() as client:
            for budget in map(int, some):
                response = ask(client, png, FLOPs_Budget=str(budget))
                assert response.status_code == 200, response.text
                flops = response.json()["subnet"]["flops"]
                assert int(response.headers["Served-FLOPs"]) == flops <= budget

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, np.array_split(budgets, 4)))


def test_neighbours_of_different_budgets_keep_their_own_answers(server: Server, client, png):
    budgets = ["100k", "500k", "1M", "2.2M"] * 6
    alone = {text: ask(client, png, FLOPs_Budget=text).json() for text in set(budgets)}

    def check(text: str) -> None:
        with server.client() as one:
            for _ in range(4):
                body = ask(one, png, FLOPs_Budget=text).json()
                assert body["subnet"] == alone[text]["subnet"]
                for mine, same in zip(body["predictions"], alone[text]["predictions"], strict=True):
                    assert mine["index"] == same["index"]
                    assert mine["probability"] == pytest.approx(same["probability"], abs=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, budgets))


# ------------------------------------------------------- what looks like an option and is none


@pytest.mark.parametrize("turn", [1, -1])
def test_a_budget_that_is_repeated_binds_by_its_smallest(client, png, turn):
    for header, values, status in (
        ("FLOPs-Budget", ["1M", "300k"], 200),
        ("Latency-Budget", ["10000", "0.0001"], 422),
    ):
        fields = [("Content-Type", "image/png"), *((header, value) for value in values[::turn])]
        answer = client.post("/classify", content=png, headers=fields)
        assert answer.status_code == status, answer.text
        assert status == 422 or answer.json()["subnet"]["flops"] <= 300_000


@pytest.mark.parametrize(
    "header",
    [
        *("FLOP-Budget", "FLOPS_Budget", "FLOPs-Budgets", "X-FLOPs-Budget", "Budget-FLOPs"),
        *("MACs-Budget", "Latency-Budgets", "Latency_Budget", "X-Latency-Budget", "Budget"),
        *("Latency-Budget-Ms", "FlopsBudget", "FLOPs", "X-Flops", "Max-FLOPs", "FLOPs-Limit"),
        *("Latency", "Latency-Ms", "latency_ms", "Max-Latency", "X-Latency"),
    ],
)
def test_a_misspelt_budget_is_refused_and_the_right_name_said(client, png, header):
    answer = client.post("/classify", content=png, headers={**PNG, header: "300000"})
    body = assert_problem(answer, 400, header)
    right = "Latency-Budget" if "latency" in header.lower() else "FLOPs-Budget"
    assert right in body["detail"]


@pytest.mark.parametrize("header", ["Top-K", "top_k", "TopK"])
def test_top_k_as_a_header_is_refused_and_the_right_place_said(client, png, header):
    answer = client.post("/classify", content=png, headers={**PNG, header: "1"})
    assert_problem(answer, 400, "top_k=5 in the query")


def test_headers_that_are_no_options_do_not_matter(client, png):
    fields = {"X-Forwarded-For": "10.0.0.1", "Priority": "u=1", "Save-Data": "on", "X-Request": "a"}
    fields |= {"X-Kong-Proxy-Latency": "3", "X-Envoy-Expected-Rq-Timeout-Ms": "9", "DPR": "2"}
    assert ask(client, png, **fields).status_code == 200


@pytest.mark.parametrize(
    ("name", "right"),
    [
        *((name, "FLOPs-Budget") for name in ("flops", "flops_budget", "FLOPs-Budget", "budget")),
        *((name, "Latency-Budget") for name in ("latency", "latency_ms", "Latency-Budget")),
        *((name, "top_k") for name in ("topk", "k", "top-k", "Top_K")),
        ("colour", "top_k"),
    ],
)
def test_an_unknown_query_parameter_is_refused_and_the_right_place_said(client, png, name, right):
    answer = client.post("/classify", params={name: "3"}, content=png, headers=PNG)
    body = assert_problem(answer, 400, name)
    assert right in body["detail"]


def test_an_option_that_is_repeated_in_the_query_is_refused(client, png):
    for other in (1, 3):
        answer = client.post(f"/classify?top_k=1&top_k={other}", content=png, headers=PNG)
        assert_problem(answer, 400, "top_k")


@pytest.mark.parametrize("name", ["flops_budget", "FLOPs-Budget", "budget", "top_k", "colour"])
@pytest.mark.parametrize("form", [True, False])
def test_options_have_no_place_in_a_body(client, png, b64, name, form):
    if form:
        answer = client.post("/classify", files={"image": png}, data={name: "300000"})
    else:
        answer = client.post("/classify", json={"image": b64, name: 300000})
    body = assert_problem(answer, 400, name)
    if "budget" in name.lower():
        assert "FLOPs-Budget" in body["detail"]


def test_top_k(client, png):
    def top(k: str) -> httpx.Response:
        return client.post("/classify", params={"top_k": k}, content=png, headers=PNG)

    assert len(top("1").json()["predictions"]) == 1
    everything = top("99").json()["predictions"]
    assert len(everything) == 10
    assert sum(one["probability"] for one in everything) == pytest.approx(1)
    for wrong in ("0", "-1", "x", "1.5", ""):
        assert_problem(top(wrong), 400, "top_k")
