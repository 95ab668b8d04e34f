"""The Open Inference Protocol, as Triton's public client speaks it and as curl would."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.http import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from models.bundle.folder import Bundle
from tests.contract.conftest import API_KEYS
from tests.contract.process import PNG, Server
from tests.pictures import encoded, picture


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[InferenceServerClient]:
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
    config = triton.get_model_config(bundle.name)
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert [one["name"] for one in config["output"]] == [o["name"] for o in metadata["outputs"]]


def test_statistics_count_images(triton: InferenceServerClient, bundle: Bundle, png):
    def count() -> int:
        (found,) = triton.get_inference_statistics(bundle.name, bundle.version)["model_stats"]
        stages = found["inference_stats"]
        assert stages["compute_infer"]["ns"] >= 0
        assert stages["queue"]["count"] == found["inference_count"]
        return found["inference_count"]

    before = count()
    triton.infer(bundle.name, [image_input(png, png)])
    assert count() == before + 2


@pytest.mark.parametrize("binary", [True, False])
def test_infer_answers_as_classify_does(triton, client, bundle: Bundle, binary: bool):
    budget = (bundle.min_flops + bundle.max_flops) // 2
    images = [encoded(picture(seed=seed)) for seed in range(3)]
    names = ("probabilities", "subnet_flops", "subnet_id")
    result = triton.infer(
        bundle.name,
        [image_input(*images, binary=binary)],
        request_id="seven",
        parameters={"flops_budget": budget},
        outputs=[InferRequestedOutput(name, binary_data=binary) for name in names],
    )
    probabilities, all_flops, ids = (result.as_numpy(name) for name in names)
    assert probabilities.shape == (3, len(bundle.labels))
    assert result.get_response()["id"] == "seven"
    for image, row, flops, identity in zip(images, probabilities, all_flops, ids, strict=True):
        headers = {**PNG, "FLOPs-Budget": str(budget)}
        single = client.post("/classify?top_k=99", content=image, headers=headers).json()
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
        ({"model_name": "another"}, "another"),
        ({"model_version": "9"}, "'9'"),
        ({"parameters": {"flops_budget": "lots"}}, "(?i)flops.budget"),
        ({"parameters": {"flops_budget": 1}}, "smallest"),
        ({"parameters": {"flop_budget": 1000000}}, "flops_budget"),
        ({"query_params": {"flops_budget": "1M"}}, "the query takes nothing.*flops_budget"),
        ({"headers": {"FLOPs": "1M"}}, "did you mean FLOPs-Budget"),
        ({"outputs": [InferRequestedOutput("logits")]}, "logits"),
        ({"inputs": [image_input(b"not an image")]}, "image"),
        ({"inputs": [InferInput("pixels", [1], "BYTES")]}, "'image'"),
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_own_field(triton, bundle, png, change, says):
    call = {"model_name": bundle.name, "inputs": [image_input(png)]} | change
    for tensor in call["inputs"]:
        if tensor.name() == "pixels":
            tensor.set_data_from_numpy(np.array([png], object))
    with pytest.raises(InferenceServerException, match=says):
        triton.infer(**call)


def test_one_corrupt_image_does_not_touch_the_next_request(triton, bundle: Bundle, png):
    for broken in (b"\xff\xd8 no more", b"not an image", b"", png[:-40]):
        with pytest.raises(InferenceServerException, match=r"image 2 of 3: "):
            triton.infer(bundle.name, [image_input(png, broken, png)])
    assert triton.infer(bundle.name, [image_input(png)]).as_numpy("probabilities").shape[0] == 1


def test_keys_guard_inference(keyed: Server, bundle: Bundle, png):
    client = InferenceServerClient(keyed.url.removeprefix("http://"))
    try:
        with pytest.raises(InferenceServerException, match="key"):
            client.infer(bundle.name, [image_input(png)])
        given = {"Authorization": f"Bearer {API_KEYS[0]}"}
        assert client.infer(bundle.name, [image_input(png)], headers=given) is not None
    finally:
        client.close()


ONE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aa=="]}


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, json.dumps({"inputs": [ONE] * 2}).encode()])
@pytest.mark.parametrize("length", [{}, {"Inference-Header-Content-Length": "9" * 4301}])
def test_malformed_requests_are_400_and_say_why(client, bundle: Bundle, body, length):
    answer = client.post(f"/v2/models/{bundle.name}/infer", content=body, headers=length)
    assert answer.status_code == 400, answer.text[:300]
    assert 0 < len(answer.json()["error"]) < 500


def test_a_model_that_the_body_names_is_the_one_of_the_path(client, bundle: Bundle, b64):
    """KServe's client names it in both."""
    path, image = f"/v2/models/{bundle.name}/infer", {**ONE, "data": [b64]}
    for name, status in ((bundle.name, 200), ("another", 400)):
        answer = client.post(path, json={"id": "1", "model_name": name, "inputs": [image]})
        assert answer.status_code == status, answer.text
    assert "name the same in both" in answer.json()["error"]


def test_a_length_that_is_said_twice_is_refused(client, bundle: Bundle):
    fields = [("Inference-Header-Content-Length", length) for length in ("2", "3")]
    answer = client.post(f"/v2/models/{bundle.name}/infer", content=b"{}abc", headers=fields)
    assert answer.status_code == 400
    assert "several lengths" in answer.json()["error"]
