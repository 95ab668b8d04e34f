"""The Open Inference Protocol, as Triton's public client speaks it and as curl would."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shiftnas_serve.classify import Classifier
from shiftnas_serve.oip_wire import MAX_IMAGES, parse_request, respond
from shiftnas_serve.planner import Planner
from starlette.requests import Request
from starlette.types import Message
from tritonclient.http import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from models.bundle.folder import Bundle
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.oip import oip_routes
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings
from tests.serve.conftest import RunningServer, encoded, picture


@pytest.fixture(scope="module")
def triton(server: RunningServer):
    client = InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def image_input(*images: bytes, binary: bool = True) -> InferInput:
    tensor = InferInput("image", [len(images)], "BYTES")
    given = [one if binary else base64.b64encode(one) for one in images]
    tensor.set_data_from_numpy(np.array(given, object), binary_data=binary)
    return tensor


def test_health_and_metadata(triton: InferenceServerClient, bundle: Bundle):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(bundle.name)
    assert triton.is_model_ready(bundle.name, bundle.version)
    assert not triton.is_model_ready("another")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    metadata = triton.get_model_metadata(bundle.name)
    assert metadata["versions"] == [bundle.version]
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("binary", [True, False])
def test_infer_answers_as_classify_does(triton, server, bundle: Bundle, binary: bool):
    budget = (bundle.min_flops + bundle.max_flops) // 2
    images = [encoded(picture(seed=seed)) for seed in range(3)]
    result = triton.infer(
        bundle.name,
        [image_input(*images, binary=binary)],
        request_id="seven",
        parameters={"flops_budget": budget},
        outputs=[
            InferRequestedOutput("probabilities", binary_data=binary),
            InferRequestedOutput("subnet_flops", binary_data=binary),
            InferRequestedOutput("subnet_id", binary_data=binary),
        ],
    )
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (3, len(bundle.labels))
    assert result.get_response()["id"] == "seven"
    for image, row, flops, identity in zip(
        images,
        probabilities,
        result.as_numpy("subnet_flops"),
        result.as_numpy("subnet_id"),
        strict=True,
    ):
        headers = {"FLOPs-Budget": str(budget)}
        single = server.client.post(
            "/classify", params={"top_k": len(bundle.labels)}, content=image, headers=headers
        ).json()
        assert flops == single["subnet"]["flops"] <= budget
        assert (identity.decode() if binary else identity) == single["subnet"]["id"]
        for one in single["predictions"]:
            assert row[one["index"]] == pytest.approx(one["probability"], abs=1e-5)


def test_headers_name_budgets_too(triton, bundle: Bundle, png):
    result = triton.infer(
        bundle.name, [image_input(png)], headers={"FLOPs-Budget": str(bundle.min_flops)}
    )
    assert result.as_numpy("subnet_flops") == [bundle.min_flops]


def test_the_classification_extension_names_labels(triton, bundle: Bundle, png):
    wanted = [InferRequestedOutput("probabilities", class_count=2)]
    rows = triton.infer(bundle.name, [image_input(png)], outputs=wanted).as_numpy("probabilities")
    assert rows.shape == (1, 2)
    value, index, label = rows[0, 0].decode().split(":")
    assert label == bundle.labels[int(index)]
    assert float(value) >= float(rows[0, 1].decode().split(":")[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_name": "another"}, "no model 'another'"),
        ({"model_version": "9"}, "no version '9'"),
        ({"parameters": {"flops_budget": "lots"}}, "FLOPs-Budget"),
        ({"parameters": {"flops_budget": 1}}, "smallest"),
        ({"outputs": [InferRequestedOutput("logits")]}, "no output 'logits'"),
        ({"inputs": [image_input(b"not an image")]}, "image"),
        ({"inputs": [InferInput("pixels", [1], "BYTES")]}, "'image'"),
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_own_field(triton, bundle, png, change, says):
    call = {"model_name": bundle.name, "inputs": [image_input(png)]} | change
    if not call["inputs"][0]._get_binary_data():
        call["inputs"][0].set_data_from_numpy(np.array([png], object))
    with pytest.raises(InferenceServerException, match=says):
        triton.infer(**call)


def test_one_corrupt_image_does_not_touch_the_next_request(triton, bundle: Bundle, png):
    with pytest.raises(InferenceServerException):
        triton.infer(bundle.name, [image_input(png, b"\xff\xd8 no more", png)])
    assert triton.infer(bundle.name, [image_input(png)]).as_numpy("probabilities").shape[0] == 1


def test_keys_guard_inference(keyed_server, bundle: Bundle, png):
    client = InferenceServerClient(keyed_server.url.removeprefix("http://"))
    try:
        with pytest.raises(InferenceServerException, match="key"):
            client.infer(bundle.name, [image_input(png)])
        given = {"Authorization": "Bearer first-key"}
        assert client.infer(bundle.name, [image_input(png)], headers=given) is not None
    finally:
        client.close()


ONE = b'{%b, "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aa=="]}]}'
HEAD = b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": '


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"inputs": 3}', None),
        (b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], "data": [1]}]}', None),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["?"]}]}',
            None,
        ),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["aa=="]}]}',
            None,
        ),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [0], "data": []}]}', None),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [65], "data": [%s]}]}'
            % b",".join([b'""'] * (MAX_IMAGES + 1)),
            None,
        ),
        (HEAD + b'{"binary_data_size": 9}}]}', None),
        (HEAD + b'{"binary_data_size": 3}}]}abc', str(len(HEAD) + 26)),
        (HEAD + b'{"binary_data_size": 8}}]}\xff\xff\xff\xff1234', str(len(HEAD) + 26)),
        (b"{}", "9" * 4301),
        (b"{}", "\xb2"),
        (b'{"inputs": [{"name": "image", "datatype": "\\ud800"}]}', None),
        (b'{"inputs": [{"name": "\\ud800"}]}', None),
        (ONE % b'"id": 7', None),
        (ONE % (b'"id": ' + b"9" * 5000), None),
        (ONE % (b'"id": ' + b"[" * 900 + b"]" * 900), None),
        (ONE % b'"parameters": {"flops_budget": ["1M"]}', None),
        (ONE % (b'"outputs": [' + b", ".join([b'{"name": "probabilities"}'] * 17) + b"]"), None),
        (b"{}", "3"),
        (b"{}", "-1"),
        (b"[" * 100_000, None),
    ],
)
def test_malformed_requests_are_refused(body, length):
    with pytest.raises(Problem) as refused:
        parse_request(body, length, ("probabilities",))
    assert refused.value.status == 400


def test_a_refusal_of_many_inputs_names_a_few():
    inputs = b", ".join([b'{"name": "pixels"}'] * 10_000)
    with pytest.raises(Problem, match="not 10000") as refused:
        parse_request(b'{"inputs": [%b]}' % inputs, None, ())
    assert len(refused.value.detail) < 200


def test_an_id_comes_back_as_it_was_sent(bundle: Bundle):
    """Also half of a surrogate pair, which has no UTF-8."""
    asked = parse_request(ONE % b'"id": "\\ud800 7"', None, ())
    answer = respond(bundle, asked, [])
    assert json.loads(answer.body)["id"] == "\ud800 7"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"datatype": "\ud800"}, "datatype"),
        ({"shape": "\ud800"}, "shape"),
        ({"name": "\ud800"}, ""),
    ],
)
def test_what_has_no_utf8_is_refused_with_a_problem(server, bundle: Bundle, change, says):
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aa=="]} | change
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = server.client.post(f"/v2/models/{bundle.name}/infer", content=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_few_images_of_a_request_are_decoded_in_one_turn_of_the_loop(
    bundle: Bundle, monkeypatch, png
):
    """And all are on their way to a worker before the first is answered."""
    turn, decoded, sent = 0, Counter[int](), asyncio.Event()
    pixels = Classifier._pixels

    def counted(self: Classifier, *given: Any, **named: Any) -> np.ndarray:
        decoded[turn] += 1
        return pixels(self, *given, **named)

    async def run(**job: object) -> None:
        if decoded.total() == MAX_IMAGES:
            sent.set()
        await sent.wait()
        raise Problem(503, "nobody is there")

    monkeypatch.setattr(Classifier, "_pixels", counted)
    table = LatencyTable(((1e6, 1.0), (2e6, 2.0)))
    workers: Any = SimpleNamespace(
        latency=table, least_wait_ms=lambda due_s: 0.0, run=run, ready=True
    )
    counter = SimpleNamespace(inc=lambda by=1: None)
    metrics: Any = SimpleNamespace(in_flight=counter, answered=lambda status: None)
    nothing: Any = None
    data = [base64.b64encode(png).decode()] * MAX_IMAGES
    tensor = {"name": "image", "datatype": "BYTES", "shape": [MAX_IMAGES], "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def main() -> None:
        nonlocal turn
        planner = Planner(bundle, None)
        classifier = Classifier(bundle, planner, workers, metrics, Settings(bundle=Path()), Path())
        routes = oip_routes(bundle, workers, classifier, nothing)
        (infer,) = [one for one in routes if one.path == "/v2/models/{name}/infer"]
        scope = {"type": "http", "path_params": {"name": bundle.name}, "headers": []}
        request = Request({**scope, "state": {"headers": {}}}, receive)
        answer = asyncio.ensure_future(infer.endpoint(request))
        while not answer.done():
            turn += 1
            await asyncio.sleep(0)
        classifier.close()
        with pytest.raises(Problem, match="nobody"):
            answer.result()

    asyncio.run(main())
    assert decoded.total() == MAX_IMAGES
    assert max(decoded.values()) <= 2
