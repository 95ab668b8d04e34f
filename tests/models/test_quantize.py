"""Bundles whose answers can run in 8-bit integers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from models.__main__ import main
from models.bundle.files import describe
from models.bundle.folder import Bundle, load_bundle
from models.bundle.int8 import INT8
from models.bundle.manifest import version_of
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.onnx.graph import cut_graph
from models.onnx.graph_template import Template
from models.onnx.int8 import quantize, weight_scales
from models.onnx.template import export_template
from models.quantize import observed_ranges, quantize_bundle
from models.retarget import retarget
from models.space.arch import Arch
from models.spaces import SPACES, get_space
from tests.bundles import make_bundle
from tests.models.test_cnn_spaces import SMALL as PROJECTED
from tests.models.test_costs import made_up_table
from tests.models.test_graph import deployed, images_for, run, session, supernet, template
from tests.models.test_invariants import LARGE
from tests.pictures import write_photos

ACTIVATION_MOST, SIXTEEN_BITS = 255, 2**15 - 1
SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]  # exporting their templates takes a while
CONVOLUTIONAL = [
    name if name == "nano-cnn" else pytest.param(name, marks=SLOW)
    for name in SPACES
    if get_space(name).norms
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), 64)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano")


@pytest.fixture(scope="module")
def folder(source: Path, photos: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "nano"
    quantize_bundle(source, out, photos)
    return out


def noise(bundle: Bundle, arch: Arch, count: int, seed: int = 0) -> np.ndarray:
    side = bundle.space.resolution(arch)
    return np.random.default_rng(seed).normal(size=(count, 3, side, side)).astype(np.float32)


def weights_of(model: onnx.ModelProto) -> list[np.ndarray]:
    """The whole numbers of every weight, channels first."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [array for name, array in arrays.items() if name.endswith(".weight.int8")]


def overflow_free(whole: np.ndarray, *, in_order: bool) -> bool:
    """Whether two products with activations stay within 16 bits: neighbours', or any two's."""
    flat = whole.reshape(len(whole), -1).astype(int)
    if flat.shape[1] == 1:
        return True
    if in_order:
        sums = np.abs(flat[:, 1:] + flat[:, :-1])
    else:
        ordered = np.sort(flat, axis=1)
        sums = np.stack([ordered[:, -2:].clip(min=0).sum(1), -ordered[:, :2].clip(max=0).sum(1)])
    return bool((ACTIVATION_MOST * sums).max() <= SIXTEEN_BITS)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_space_says_nearly_the_same_in_8_bits(name):
    net = supernet(name)
    archs = [net.space.smallest] if name in LARGE else [net.space.smallest, net.space.largest]
    assert_nearly_the_same(net, template(name), archs)


@pytest.mark.slow
def test_squeezing_and_swish_are_nearly_the_same_in_8_bits():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build_net(PROJECTED).eval()
    made = Template.parse(export_template(PROJECTED))
    assert_nearly_the_same(net, made, [PROJECTED.smallest, PROJECTED.largest])


def assert_nearly_the_same(net: AbstractNet, made: Template, archs: list[Arch]) -> None:
    for arch in archs:
        weights, _ = deployed(net, arch)
        model = cut_graph(made, net.space, arch, weights)
        images = images_for(net.space, arch, 16)
        ranges = observed_ranges(model, np.split(images.numpy(), 2))
        assert (ranges[:, 0] <= ranges[:, 1]).all()
        assert ranges[0] == pytest.approx([float(images.min()), float(images.max())])
        small = quantize(model, ranges)
        onnx.checker.check_model(small, full_check=True)
        every = [t for t in model.graph.initializer if t.name.endswith(".weight")]
        assert [list(w.shape) for w in weights_of(small)] == [list(t.dims) for t in every]
        for whole in weights_of(small):
            assert overflow_free(whole, in_order=whole[0].size == len(whole[0]))
        exact, near = run(session(model), images), run(session(small), images)
        assert near.shape == exact.shape
        assert near.dtype == np.float32
        centred = [one - one.mean(0) for one in (exact, near)]
        assert np.corrcoef(*[one.ravel() for one in centred])[0, 1] > 0.9


def test_the_graph_is_as_good_as_that_of_the_runtimes_own_quantizer(source, tmp_path):
    """Which has weights of 8 bits whatever their neighbours are, and takes seconds."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    bundle = load_bundle(source)
    arch = bundle.answer(bundle.max_flops)
    model, images = bundle.build_onnx(arch), noise(bundle, arch, 16)
    onnx.save(model, tmp_path / "exact.onnx")

    class Images(CalibrationDataReader):
        left = iter([{"images": images}])

        def get_next(self):
            return next(self.left, None)

    quantize_static(
        tmp_path / "exact.onnx",
        tmp_path / "theirs.onnx",
        Images(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    ours = quantize(model, observed_ranges(model, [images]))
    exact, theirs, near = (
        np.asarray(session(one).run(None, {"images": images})[0])
        for one in (model, onnx.load(tmp_path / "theirs.onnx"), ours)
    )
    assert np.abs(near - exact).mean() < 1.6 * np.abs(theirs - exact).mean()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(8, 1, 3, 3), (8, 5, 1, 1), (8, 1, 1, 1), (8, 3, 3, 3), (8, 7)]),
    st.floats(1e-6, 1e3),
    st.floats(1e-6, 1e4),
)
def test_no_weights_overflow_and_every_bias_is_kept(seed, shape, size, bias_size):
    rng = np.random.default_rng(seed)
    weight = (size * rng.standard_t(2, shape)).astype(np.float32)
    weight[0] = 0  # channels that say nothing are there in pruned networks
    bias = (bias_size * rng.normal(size=8)).astype(np.float32)
    step = np.float32(0.02)
    scales = weight_scales(weight, step, bias)
    whole = np.round(weight / scales.reshape(-1, *[1] * (len(shape) - 1)))
    assert np.isfinite(whole).all()
    assert np.abs(whole).max() <= 127
    assert overflow_free(whole, in_order=weight[0].size == shape[1])
    both = (step * scales).astype(np.float32)
    kept = np.round(bias / both)
    assert np.abs(kept).max() < 2**31
    assert (np.abs(kept * both - bias) <= 0.51 * both + 1e-5 * np.abs(bias)).all()
    assert kept[0] * both[0] == pytest.approx(bias[0], rel=1e-5)  # where no weight helps


# --------------------------------------------------------------------------------- the bundle


def test_a_bundle_holds_both_and_the_old_one_is_as_it_was(source, folder, photos, tmp_path):
    before, bundle = load_bundle(source), load_bundle(folder)
    assert before.int8 is None
    assert bundle.int8 is not None
    assert bundle.version != before.version
    for file in source.iterdir():
        if file.name != "bundle.json":
            assert (folder / file.name).read_bytes() == file.read_bytes()
    said, old = (json.loads((f / "bundle.json").read_text()) for f in (folder, source))
    assert "int8" not in old
    assert {**said, "int8": None, "version": None, "files": None} == {
        **old,
        "int8": None,
        "version": None,
        "files": None,
    }
    quantized = bundle.at("int8")
    assert (bundle.precision, quantized.precision) == ("fp32", "int8")
    assert quantized.at("int8") is quantized
    for budget in np.linspace(bundle.min_flops, bundle.max_flops, 20):
        assert quantized.answer(budget) == before.answer(budget)
    arch = bundle.answer(bundle.max_flops)
    images = noise(bundle, arch, 4)
    assert (
        run_on(before.build_onnx(arch), images) == run_on(bundle.build_onnx(arch), images)
    ).all()
    assert (
        run_on(quantized.build_onnx(arch), images) != run_on(bundle.build_onnx(arch), images)
    ).any()
    metadata = {one.key: one.value for one in quantized.build_onnx(arch).metadata_props}
    assert json.loads(metadata["model"])["precision"] == "int8"
    # once more, in place
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    quantize_bundle(copy, copy, photos)
    assert load_bundle(copy).version == bundle.version


def run_on(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return np.asarray(session(model).run(None, {"images": images})[0])


def test_how_good_int8_is_stands_in_the_table(folder, capsys):
    bundle = load_bundle(folder)
    assert main(["describe", str(folder)]) == 0
    told = json.loads(capsys.readouterr().out)["int8"]
    assert (told["calibration_images"], told["images"]) == (32, 32)
    assert {row["id"] for row in told["rows"]} == {
        bundle.space.arch_id(row.arch) for row in bundle.frontier
    }
    for row in told["rows"]:
        low, high = row["agreement_95"]
        assert low <= row["agreement"] <= high
        assert row["accuracy"] is None
    for row in bundle.at("int8").frontier:
        assert row.held_out_accuracy is None
        assert row.test_accuracy is None
        assert row.agreement is not None
        assert row.agreement > 0.5
    assert bundle.at("int8").measured_on == told["measured_on"]


def test_a_subnet_is_extracted_in_8_bits(folder, tmp_path, capsys):
    whole, small = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    command = ["extract", str(folder), "--flops", "1M"]
    assert main([*command, "--out", str(whole)]) == 0
    assert main([*command, "--out", str(small), "--precision", "int8"]) == 0
    told = json.loads(capsys.readouterr().out.partition("}\n{")[2].join("{ "))
    assert told["model"]["precision"] == "int8"
    assert small.stat().st_size < whole.stat().st_size
    assert main([*command, "--out", str(tmp_path / "one.pt2"), "--precision", "int8"]) == 2
    assert "is for logits as .onnx" in capsys.readouterr().err


def test_what_cannot_be_quantized_is_refused_in_a_line(source, folder, photos, tmp_path, capsys):
    vit = make_bundle("nano-vit", tmp_path / "vit")
    few = write_photos(tmp_path / "few", 20)
    for arguments, said in (
        ([vit, "--data", photos, "--out", tmp_path / "a"], "int8 is for convolutional networks"),
        ([source, "--data", few, "--out", tmp_path / "b"], "at least 64 are needed"),
        ([source, "--data", photos, "--out", folder], "exists"),
        ([source, "--data", photos, "--out", tmp_path / "c", "--images", "3"], "give 32 or more"),
        ([tmp_path, "--data", photos, "--out", tmp_path / "d"], "is not a bundle"),
    ):
        assert main(["quantize", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert main(["extract", str(source), "--flops", "1M", "--precision", "int8", "--out", "x"]) == 2
    assert "holds no int8; make a bundle that does: python -m models quantize" in (
        capsys.readouterr().err
    )


def test_a_bundle_that_answers_more_than_was_quantized_is_not_int8(folder, tmp_path):
    """A generator that was retargeted with images answers archs that have no ranges."""
    photos = write_photos(tmp_path / "photos", 32)
    out = tmp_path / "out"
    table = made_up_table(load_bundle(folder).space)
    retarget(folder, table, out, data=photos, steps=5)
    bundle = load_bundle(out)
    new = set(bundle.answerable()) - set(load_bundle(folder).answerable())
    assert new
    with pytest.raises(ValueError, match=r"holds int8 for \d+ of the \d+ subnets.*quantize it"):
        bundle.at("int8")
    quantize_bundle(out, out, write_photos(tmp_path / "photos", 64))
    quantized = load_bundle(out).at("int8")
    for arch in quantized.answerable():
        quantized.build_onnx(arch)
    assert quantized.int8 is not None
    without = replace(quantized, int8=replace(quantized.int8, ranges={}))
    with pytest.raises(ValueError, match="has no int8; only the"):
        without.build_onnx(without.space.largest)


def test_ranges_that_are_not_those_of_the_answers_are_named(folder, tmp_path):
    def spoilt(change) -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / str(len(list(tmp_path.iterdir())))))
        change(copy)
        document = json.loads((copy / "bundle.json").read_text())
        if (copy / INT8).exists():
            document["files"][INT8] = describe(copy / INT8).model_dump()
        document["version"] = version_of(document)
        (copy / "bundle.json").write_text(json.dumps(document))
        return copy

    def changed(change):
        def write(copy: Path) -> None:
            arrays = load_file(copy / INT8)
            save_file(change(arrays, next(iter(arrays))), copy / INT8)

        return write

    for change, said in (
        (lambda copy: (copy / INT8).unlink(), f"{INT8} is missing"),
        (changed(lambda a, k: {**a, k: a[k][:-1]}), "is not the ranges of its"),
        (changed(lambda a, k: {**a, k: a[k][:, ::-1].copy()}), "is not the ranges of its"),
        (changed(lambda a, k: {**a, "abc": a[k]}), "abc is not a subnet that is answered"),
        (changed(lambda a, k: {**a, k: a[k] * np.float32("nan")}), "not a number"),
    ):
        with pytest.raises(ValueError, match=said):
            load_bundle(spoilt(change))
