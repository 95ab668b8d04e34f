"""The Open Inference Protocol, as Triton's public client speaks it and as curl would."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from tritonclient.http import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from models.bundle import Bundle
from shiftnas_serve.oip import MAX_IMAGES, parse_request
from shiftnas_serve.problem import Problem
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
        (b"{}", "3"),
        (b"{}", "-1"),
        (b"[" * 100_000, None),
    ],
)
def test_malformed_requests_are_refused(body, length):
    with pytest.raises(Problem) as refused:
        parse_request(body, length, ("probabilities",))
    assert refused.value.status == 400
