"""The Open Inference Protocol as bytes: what is understood, and what is refused."""

from __future__ import annotations

import base64
import threading
import tracemalloc

import pytest
from starlette.testclient import TestClient

from shiftnas_serve.app import assemble
from shiftnas_serve.http import body as bodies
from shiftnas_serve.http.state import ServerState
from shiftnas_serve.library import Engine
from shiftnas_serve.oip import routes
from shiftnas_serve.oip.wire import MAX_IMAGES, parse_request
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings

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
        (b"{}", b"9" * 4301),
        (b"{}", b"\xb2"),
        (b'{"inputs": [{"name": "image", "datatype": "\\ud800"}]}', None),
        (b'{"inputs": [{"name": "\\ud800"}]}', None),
        (ONE % b'"id": 7', None),
        (ONE % b'"id": "\\ud800 7"', None),
        (ONE % (b'"id": ' + b"9" * 5000), None),
        (ONE % (b'"id": ' + b"[" * 900 + b"]" * 900), None),
        (ONE % b'"parameters": {"flops_budget": ["1M"]}', None),
        (ONE % (b'"outputs": [' + b", ".join([b'{"name": "probabilities"}'] * 17) + b"]"), None),
        (b"{}", b"3"),
        (b"{}", b"-1"),
        (b"[" * 100_000, None),
    ],
)
def test_malformed_requests_are_refused(body, length):
    with pytest.raises(Problem) as refused:
        parse_request(body, length)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        # a budget where nobody reads it
        (b'"id"', b'"flops_budget": "4M", "id"', "flops_budget.*parameters of the request"),
        (b'"name"', b'"flops_budget": "4M", "name"', "flops_budget.*parameters of the request"),
        (b'"data"', b'"parameters": {"flops_budget": "4M"}, "data"', "parameters of image"),
        (b'"classification"', b'"flops_budget": 4, "classification"', "parameters of probab"),
        (b'"name": "prob', b'"latency_budget": 4, "name": "prob', "latency_budget"),
        (b'"flops_budget": "1M"', b'"top_k": 4', "classification is a parameter"),
        # what stands twice
        (b'"flops_budget": "1M"', b'"flops_budget": 4, "flops_budget": "1M"', "'flops_budget'"),
        (b'"flops_budget"', b'"flops_budget": 4, "flops\\u005fbudget"', "'flops_budget'"),
        (b'"id"', b'"parameters": {}, "id"', "'parameters' stands several times"),
        (b'"inputs"', b'"outputs": [], "inputs"', "'outputs' stands several times"),
        (b'"data"', b'"data": ["%b"], "data"' % (b"a" * 999), "'data' stands several times"),
        # what is not what it looks like
        (
            b'[{"name": "prob',
            b'[{"name": "subnet_id"}, {"name": "subnet_id"}, {"name": "prob',
            "twice",
        ),
        (
            b'"outputs": [',
            b'"outputs": [{"name": "probabilities", "parameters": {"classification": 9, '
            b'"binary_data": true}}, ',
            "probabilities stands twice in the same form; ask for it once",
        ),
        (b"true", b'"false"', "binary_data is true or false, not 'false'"),
        (b'"flops_budget"', b'"binary_data_output": 0, "flops_budget"', "true or false"),
        (b'"classification": 2', b'"classification": true', "number of classes"),
        (b'"data"', b'"parameters": {"shared_memory_region": "a"}, "data"', "shared_memory_region"),
        (b'"data"', b'"parameters": {"binary_data_size": 0}, "data"', "both data and binary"),
    ],
)
def test_what_could_mean_two_things_is_refused(old, new, says):
    body = (
        b'{"id": "a \\"b\\": c", "parameters": {"flops_budget": "1M"}, "outputs": [{"name": '
        b'"probabilities", "parameters": {"classification": 2, "binary_data": true}}], "inputs": '
        b'[{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aa=="]}]}'
    )
    asked = parse_request(body, None)
    assert (asked.budgets, asked.outputs[0].binary) == ({"flops": "1M"}, True)
    with pytest.raises(Problem, match=says) as refused:
        parse_request(body.replace(old, new, 1), None)
    assert refused.value.status == 400


def test_bytes_behind_the_json_that_it_does_not_name_are_refused():
    body = ONE % b'"id": "1"'
    with pytest.raises(Problem, match="binary_data_size is None, the body holds 3"):
        parse_request(body + b"abc", b"%d" % len(body))


def test_an_id_comes_back_whole_or_is_refused():
    assert parse_request(ONE % (b'"id": "%b"' % (b"a" * 128)), None).id == "a" * 128
    with pytest.raises(Problem, match="id has 129 characters; 128 are allowed") as refused:
        parse_request(ONE % (b'"id": "%b"' % (b"a" * 129)), None)
    assert refused.value.status == 400


def test_what_clients_of_kserve_and_mlserver_say_beside_is_understood():
    body = (ONE % b'"id": "1", "model_name": "m"').replace(
        b'"data"', b'"parameters": {"content_type": "base64"}, "data"'
    )
    assert parse_request(body, None).model_name == "m"


def test_a_refusal_of_many_inputs_says_little():
    inputs = b", ".join([b'{"name": "pixels"}'] * 10_000)
    with pytest.raises(Problem, match="one tensor 'image'") as refused:
        parse_request(b'{"inputs": [%b]}' % inputs, None)
    assert len(refused.value.detail) < 200


MANY = b"{},%b" % (b"{}," * 300_000)
NAMES = b"".join(b'"%x": 1,' % number for number in range(100_000))
BOMBS = {
    "unknown": b'{"x": [%b{}]}' % MANY,
    "inputs": b'{"inputs": [%b{}]}' % MANY,
    "parameters": ONE
    % (b'"parameters": {%b"a": 1}' % b"".join(b'"%x": 1,' % n for n in range(10**5))),
    "outputs": ONE % (b'"outputs": [%b{}]' % MANY),
    "deep": ONE % (b'"outputs": ' + b"[" * 500_000),
    "shape": HEAD[:-16].replace(b"[1]", b"[%b1]" % (b"1," * 300_000)) + b"}]}",
    "data": b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": [%b""]}]}'
    % (b'"",' * 300_000),
}


def test_no_more_binary_images_are_read_than_are_allowed():
    many = bytes(4 * 1_000_000)
    head = HEAD + b'{"binary_data_size": %d}}]}' % len(many)
    tracemalloc.start()
    try:
        with pytest.raises(Problem, match=f"more than the {MAX_IMAGES} images") as refused:
            parse_request(head + many, b"%d" % len(head))
        assert tracemalloc.get_traced_memory()[1] < 3 * len(many)
    finally:
        tracemalloc.stop()
    assert refused.value.status == 400


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_nothing_is_built_of_what_cannot_be_right(body):
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as refused:
            parse_request(body, None)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 1_000_000
    finally:
        tracemalloc.stop()
    assert refused.value.status == 400


def test_an_output_may_stand_in_several_forms():
    forms = b'{"name": "probabilities"}, {"name": "probabilities", "parameters": {"%b"}}'
    for other in (
        b'classification": 5, "binary_data": false',
        b'binary_data": true, "classification": 0',
    ):
        given = forms.replace(b'%b"', other)
        assert len(parse_request(ONE % (b'"outputs": [%b]' % given), None).outputs) == 2


@pytest.mark.parametrize(("small_bytes", "in_thread"), [(100, True), (100_000, False)])
def test_a_long_answer_is_written_in_a_thread(
    bundle_folder, png, monkeypatch, small_bytes, in_thread
):
    where: list[str] = []
    respond = routes.respond

    def noted(*given):
        where.append(threading.current_thread().name)
        return respond(*given)

    monkeypatch.setattr(routes, "respond", noted)
    monkeypatch.setattr(bodies, "_SMALL_BYTES", small_bytes)
    state = ServerState(Settings(bundle=bundle_folder))
    with Engine(state.settings) as engine:
        state.engine = engine
        data = [base64.b64encode(png).decode()]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
        path = f"/v2/models/{engine.model.name.name}/infer"
        answer = TestClient(assemble(state)).post(path, json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert [name.startswith("body") for name in where] == [in_thread]
