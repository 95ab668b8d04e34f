"""A server that was started with --precision int8, as a client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import shiftnas_serve
from models.bundle.folder import Bundle, load_bundle
from models.quantize import quantize_bundle
from shiftnas_serve.export import main as export
from shiftnas_serve.problem import Problem
from shiftnas_serve.runtimes import RUNTIMES, check_runtime
from tests.contract.problem import assert_problem
from tests.contract.process import PNG, Server, serving
from tests.pictures import encoded, picture, write_photos
from tests.serve.test_runtimes import runtime_here


@pytest.fixture(scope="module")
def folder(other_folder: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "nano"
    quantize_bundle(other_folder, out, write_photos(tmp_path_factory.mktemp("photos"), 64))
    return out


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Bundle:
    return load_bundle(folder).at("int8")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--precision", "int8") as running:
        yield running
        assert "Traceback" not in running.said()


def test_answers_are_those_of_the_graph_in_8_bits(server, quantized):
    """At every budget, not above it; and all that is said of them names the precision."""
    named = {"name": quantized.name, "version": quantized.version, "precision": "int8"}
    for number, budget in enumerate(
        np.linspace(quantized.min_flops, 1.1 * quantized.max_flops, 6).round()
    ):
        photo = picture(seed=number)
        answer = server.post(encoded(photo), **PNG, **{"FLOPs-Budget": str(int(budget))}).json()
        assert answer["model"] == named
        arch = quantized.answer(budget)
        assert answer["subnet"]["id"] == quantized.space.arch_id(arch)
        assert answer["subnet"]["flops"] <= budget
        side = quantized.space.resolution(arch)
        images = quantized.preprocess.array(photo, side)[None]
        session = onnxruntime.InferenceSession(quantized.build_onnx(arch).SerializeToString())
        logits = np.asarray(session.run(None, {"images": images})[0])[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        for one in answer["predictions"]:
            assert one["probability"] == pytest.approx(shares[one["index"]], abs=1e-5)


def test_int8_answers_nearly_what_fp32_does(folder):
    photos = [picture(seed=seed) for seed in range(30)]
    said = {}
    for precision in ("fp32", "int8"):
        with shiftnas_serve.load(folder, precision=precision, prebuild=False) as engine:
            said[precision] = engine.classify_batch([np.asarray(photo) for photo in photos])
    exact, near = (np.array([one.probabilities for one in said[p]]) for p in ("fp32", "int8"))
    assert (exact != near).any()
    assert np.abs(exact - near).mean() < 0.25 * exact.std(0).mean()
    assert (exact.argmax(1) == near.argmax(1)).mean() > 0.7


def test_every_route_says_the_precision_and_int8s_own_figures(server, quantized):
    budgets = server.get("/budgets").json()
    assert budgets["model"]["precision"] == "int8"
    assert budgets["measured_on"] == quantized.measured_on
    assert budgets["measured_in"] == "int8"
    assert budgets["confidence"] is None
    for row, own in zip(budgets["frontier"], quantized.frontier, strict=True):
        assert row["held_out_accuracy"] is None
        assert row["agreement"] == own.agreement
        assert row["flops"] == own.flops
    assert server.get("/readyz").json()["model"]["precision"] == "int8"
    assert server.get(f"/v2/models/{quantized.name}").json()["precision"] == "int8"
    assert 'precision="int8"' in server.get("/metrics").text
    identity = budgets["frontier"][0]["subnet"]
    assert server.get(f"/subnets/{identity}").json()["model"]["precision"] == "int8"
    sent = server.get(f"/subnets/{identity}", params={"format": "onnx"}).content
    model = onnx.load_model_from_string(sent)
    told = {one.key: one.value for one in model.metadata_props}
    assert json.loads(told["model"])["precision"] == "int8"
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}


def test_a_confidence_that_was_not_fitted_in_8_bits_is_refused(
    bundle_folder, tmp_path, server, png
):
    """The bundle's own, too, which is of fp32."""
    assert_problem(server.post(png, **PNG, Confidence="0.5"), 422)
    out = tmp_path / "sure"
    quantize_bundle(bundle_folder, out, write_photos(tmp_path / "photos", 64))
    assert load_bundle(out).confidence is not None
    with shiftnas_serve.load(out, precision="int8", prebuild=False) as engine:
        with pytest.raises(Problem, match="how sure") as refused:
            engine.classify(png, confidence=0.5)
        assert refused.value.status == 422
    with shiftnas_serve.load(out, prebuild=False) as engine:
        assert engine.classify(png, confidence=0.5).predictions


def test_what_holds_no_int8_is_refused_in_a_line(other_folder):
    line = r"[^\n]*holds no int8; make a bundle that does: python -m models quantize[^\n]*"
    with pytest.raises(ValueError, match=rf"\A{line}\Z"):
        shiftnas_serve.load(other_folder, precision="int8")


@pytest.mark.parametrize(
    ("name", "device"), [(name, on) for name, entry in RUNTIMES.items() for on in entry.devices]
)
def test_a_runtime_runs_int8_or_refuses_it_in_a_line(name, device, folder, quantized):
    entry = RUNTIMES[name]
    if device not in entry.int8:
        with pytest.raises(ValueError, match="does not run int8") as refused:
            shiftnas_serve.load(folder, runtime=name, device=device, precision="int8")
        assert "use --runtime onnxruntime --device cpu" in str(refused.value)
        return
    check_runtime(name, device, precision="int8")
    if not entry.is_installed:
        pytest.skip(f"needs {entry.library}")
    arch = quantized.answer(quantized.max_flops)
    images = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    session = runtime_here(name, "int8").build(quantized, arch)
    together = session.run(images)
    assert together.dtype == np.float32
    for index in range(5):
        np.testing.assert_allclose(session.run(images[index : index + 1])[0], together[index])
    int8, fp32 = (
        np.asarray(onnxruntime.InferenceSession(graph).run(None, {"images": images})[0])
        for graph in (
            bundle.build_onnx(arch).SerializeToString()
            for bundle in (quantized, load_bundle(folder))
        )
    )
    if name == "onnxruntime":
        np.testing.assert_array_equal(together, int8)
    # OpenVINO rounds fewer values: no farther from either than they are from each other
    rounding = np.abs(int8 - fp32).mean()
    assert np.abs(together - int8).mean() < rounding
    assert 0.5 * rounding < np.abs(together - fp32).mean() < 1.5 * rounding


def test_auto_takes_a_runtime_that_runs_int8(folder, png):
    with shiftnas_serve.load(folder, runtime="auto", precision="int8", prebuild=False) as engine:
        assert engine.model.runtime["runtime"] == "onnxruntime"
        assert engine.classify(png).model.precision == "int8"


def test_exports_are_in_8_bits_where_that_is_asked_for(folder, quantized, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    asked = [str(folder), "--flops", "1M", "--precision", "int8"]
    assert export([*asked, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["precision"] == "int8"
    assert "DequantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}
    triton = tmp_path / "repository"
    assert export([*asked, "--format", "triton", "--out", str(triton), "--json"]) == 0
    (name,) = json.loads(capsys.readouterr().out)["models"]
    assert name.endswith("-int8")
    assert export([*asked, "--format", "torch", "--out", str(tmp_path / "x.pt2")]) == 2
    assert "is written in fp32" in capsys.readouterr().err
