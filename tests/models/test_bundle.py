"""Bundles: what is wrong with one is named, and an old one survives a failed save."""

import errno
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import models.bundle.folder
from models.__main__ import describe_bundle
from models.bundle.disk import advice
from models.bundle.disk import refused as refused_write
from models.bundle.files import describe, halved
from models.bundle.folder import FrontierRow, load_bundle, save_bundle
from models.bundle.manifest import version_of
from models.generator.answer import answer_within
from models.generator.network import ArchitectureGenerator
from models.images.preprocess import Preprocess
from models.onnx.graph_template import PERMUTATIONS_KEY
from models.space.weights import SharedStatistics
from models.spaces import get_space
from tests.bundles import make_bundle, make_sure, template_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano")


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit(folder, change):
    document = json.loads((folder / "bundle.json").read_text())
    change(document)
    (folder / "bundle.json").write_text(json.dumps(document))


def rehash(folder, name):
    """Let the manifest agree with a file that was changed on purpose."""
    described = describe(folder / name).model_dump()
    edit(folder, lambda d: d["files"].update({name: described}))


def refused(folder, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format=2), "format is 2"),
        (lambda d: d.pop("labels"), "labels is missing"),
        (lambda d: d.update(labels=["a"]), "labels has 1 entries"),
        (lambda d: d["space"].update(name="nano-cn"), "did you mean 'nano-cnn'"),
        (lambda d: d["flops"].update(max=5), "flops: max is 5"),
        (lambda d: d["flops"].update(max="5"), "flops.max is '5'; it should be a valid integer"),
        (lambda d: d["files"].update({"template.onnx": {}}), "template.onnx.sha256 is missing"),
        (lambda d: d["preprocess"].update(mean=[1]), "mean"),
        (lambda d: d["answers"][0].update(budget_flops=5), "exceed"),
        (lambda d: d["answers"][3].update(budget_flops=math.nan), r"answers\[3\].*finite"),
        (lambda d: d["answers"][-1].update(budget_flops=math.inf), "finite"),
        (lambda d: d["frontier"][0].update(budget_flops=math.nan), "finite"),
        (
            lambda d: d["frontier"][0].update(held_out_accuracy=5.0),
            "held_out_accuracy.*equal to 1",
        ),
        (lambda d: d["frontier"][0].update(test_accuracy=math.nan), "test_accuracy"),
        (lambda d: d["flops"]["groups"].insert(0, -5), r"flops.groups\[0\] is -5"),
        (lambda d: d["preprocess"].update(std=[1e-300] * 3), r"preprocess.std\[0\] is 1e-300"),
        (lambda d: d["preprocess"].update(crop_ratio=1e-310), "crop_ratio"),
        (lambda d: d.update(name="../evil"), "name '../evil' cannot be a folder's"),
        (lambda d: d.update(name=".."), "cannot be a folder's"),
        (lambda d: d.update(name="a\nb"), "cannot be a folder's"),
        (lambda d: d["labels"].insert(0, "a\nb"), r"label 'a\\nb' has a line break"),
        (lambda d: d["answers"].pop(0), "begin at their smallest"),
        (lambda d: d["frontier"][0].update(id="x"), "not that of its arch"),
        (lambda d: d["frontier"][0]["arch"].update(depth="deep"), "must be numbers"),
        (lambda d: d["files"].pop("template.onnx"), "does not list template.onnx"),
        (lambda d: d.update(version=7), "version is 7; it should be a valid string"),
        (lambda d: d["labels"].reverse(), "bundle.json was changed"),
        (lambda d: d["preprocess"].update(mean=[0.5, 0.5, 0.4]), "bundle.json was changed"),
    ],
)
def test_wrong_fields_are_named(folder, change, words):
    edit(folder, change)
    refused(folder, words)


@pytest.mark.parametrize(
    "name",
    [
        "supernet.safetensors",
        "generator.safetensors",
        "template.onnx",
        "statistics.safetensors",
    ],
)
def test_missing_and_changed_files_are_named(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"{name} has another SHA-256")
    (folder / name).write_bytes(data[:-10])
    refused(folder, f"{name} has .* bytes")
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


def test_weights_of_the_wrong_shape_or_name_are_named(folder):
    file = folder / "supernet.safetensors"
    weights = load_file(file)
    save_file({**weights, "classifier.bias": np.zeros(3, np.float32)}, file)
    rehash(folder, file.name)
    refused(folder, "classifier.bias is float32")
    save_file({**weights, "extra": np.zeros(3, np.float32)}, file)
    rehash(folder, file.name)
    refused(folder, "has extra")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.pop("cell.weight_ih"), "generator.safetensors lacks cell.weight_ih"),
        (lambda g: g.update({"start": g["start"][:3]}), r"start is float32 \(3,\)"),
        (lambda g: g.update(more=g["start"]), "generator.safetensors has more"),
    ],
)
def test_a_generator_of_other_names_or_shapes_is_named(folder, change, words):
    arrays = load_file(folder / "generator.safetensors")
    change(arrays)
    save_file(arrays, folder / "generator.safetensors")
    rehash(folder, "generator.safetensors")
    refused(folder, words)


def test_what_is_no_bundle_says_so(tmp_path, folder):
    refused(tmp_path, "is not a bundle")
    (folder / "bundle.json").write_text("{")
    refused(folder, "is not JSON")


def test_what_cannot_be_read_is_named_with_the_reason(folder, monkeypatch):
    long = folder.parent / ("x" * 300)
    refused(long, f"cannot read {long}/bundle.json: File name too long")
    # (root may read everything, so the system's refusal is played)
    read_bytes = Path.read_bytes

    def denied(file):
        if file.name == "template.onnx":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(folder, f"cannot read {folder}/template.onnx: Permission denied")


def test_a_document_that_is_nested_without_end_is_refused(folder):
    (folder / "bundle.json").write_text("[" * 100_000)
    refused(folder, "bundle.json is not JSON: maximum recursion depth exceeded")


@pytest.mark.parametrize("permutations", ["[" * 100_000, "[1]", '{"nothing": [0]}'])
def test_a_template_that_says_nonsense_of_itself_is_refused(folder, permutations):
    model = onnx.load_model(folder / "template.onnx")
    (said,) = (one for one in model.metadata_props if one.key == PERMUTATIONS_KEY)
    said.value = permutations
    (folder / "template.onnx").write_bytes(model.SerializeToString())
    rehash(folder, "template.onnx")
    refused(folder, "template.onnx is not a template")


def test_a_failed_save_leaves_the_old_bundle(folder, monkeypatch):
    version = load_bundle(folder).version

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models.bundle.folder, "swap", fail)
    with pytest.raises(ValueError, match=r"cannot write .*No space left"):
        make_bundle("nano-cnn", folder, seed=1)
    assert load_bundle(folder).version == version
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.undo()
    make_bundle("nano-cnn", folder, seed=1)
    assert load_bundle(folder).version != version


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; make room"),
        (errno.EDQUOT, "Disk quota exceeded; make room"),
        (errno.EACCES, "Permission denied; choose another folder, or allow writing there"),
        (errno.EROFS, "Read-only file system; choose another folder, or allow writing there"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_to_do_about_a_refused_write_follows_its_reason(number, words):
    said = OSError(number, os.strerror(number))
    assert refused_write("here", said) == f"cannot write here: {words}"
    hidden = RuntimeError("unexpected pos 64 vs 0")
    hidden.__cause__ = said
    together = words if "; " in words else f"{words};"
    again = refused_write("here", hidden, "try again").replace("; try", "; and try")
    assert again == f"cannot write here: {together} and try again"
    told = SafetensorError(f"Error: I/O error: refused (os error {number})")
    assert refused_write("here", told).endswith(advice(said))


def test_a_bundle_that_may_not_be_written_asks_for_no_room(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(ValueError, match=r"bundle: Permission denied; choose another folder"):
        make_bundle("nano-cnn", tmp_path / "bundle")


def test_a_swap_that_fails_half_way_is_taken_back(folder, monkeypatch):
    """The old bundle is already aside when the new one cannot take its place."""
    version = load_bundle(folder).version
    rename = Path.rename

    def fail(self, target):
        if ".old-" not in str(target) and ".old-" not in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ValueError, match=r"cannot write .*No space left"):
        make_bundle("nano-cnn", folder, seed=1)
    assert load_bundle(folder).version == version
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_other_folders_are_not_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    with pytest.raises(ValueError, match="is not a bundle"):
        make_bundle("nano-cnn", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter").exists()


@pytest.mark.parametrize("name", ["nano-cnn", "nano-vit"])
def test_1000_budgets_are_kept(name, tmp_path):
    bundle = load_bundle(make_bundle(name, tmp_path / "bundle"))
    rng = np.random.default_rng(0)
    for budget in rng.uniform(bundle.min_flops, 1.1 * bundle.max_flops, 1000):
        assert bundle.space.flops(bundle.answer(budget)) <= budget
    assert bundle.answer(bundle.min_flops) == bundle.space.smallest
    assert bundle.answer(1e18) == bundle.space.largest
    with pytest.raises(ValueError, match="below the smallest subnet"):
        bundle.answer(bundle.min_flops - 1)


def test_the_frontier_shows_what_is_answered(original):
    for folder in (original, ROOT / "models" / "zoo" / "cifar10-cnn"):
        bundle = load_bundle(folder)
        for row in bundle.frontier:
            assert bundle.answer(row.budget_flops) == row.arch


def test_the_bundle_of_the_repository_is_whole_small_and_keeps_budgets():
    path = ROOT / "models" / "zoo" / "cifar10-cnn"
    bundle = load_bundle(path)
    assert sum(file.stat().st_size for file in path.iterdir()) <= 10e6
    assert bundle.max_flops >= 4 * bundle.min_flops
    budgets = np.random.default_rng(0).uniform(bundle.min_flops, bundle.max_flops, 1000)
    uses = [bundle.space.flops(bundle.answer(budget)) / budget for budget in budgets]
    assert max(uses) <= 1
    assert np.mean(uses) >= 0.97
    accuracies = [row.test_accuracy for row in bundle.frontier]
    assert accuracies[-1] > accuracies[0]


def test_loading_a_bundle_needs_no_torch(original):
    load = "import sys, models.bundle.folder as b; b.load_bundle(sys.argv[1])"
    program = f"{load}; print('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(original)], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.stdout.strip() == "False", ended.stderr


# ------------------------------------------- statistics for all archs, half precision, the card


def random_shared(space, rng):
    sizes = {norm.name: norm.size(space.largest) for norm in space.norms}
    norms = {name: (rng.normal(size=n), rng.uniform(1, 2, size=n)) for name, n in sizes.items()}
    read = space.weight["stages.1.0.project.weight"].shape_at(space.largest)[1]
    return SharedStatistics(
        {k: (m.astype(np.float32), v.astype(np.float32)) for k, (m, v) in norms.items()},
        {"stages.1.0.project": rng.normal(size=read).astype(np.float32)},
    )


def shared_bundle(folder, **changes):
    """Of nano-cnn: no answers are stored, since every arch has its statistics."""
    space = get_space("nano-cnn")
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    given = {
        "name": "shared",
        "space": space,
        "preprocess": Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        "labels": [str(i) for i in range(10)],
        "groups": [space.max_flops],
        "frontier": [],
        "answers": [],
        "weights": halved(
            {w.name: rng.normal(size=w.shape_at(space.largest)) for w in space.weights}
        ),
        "generator": {
            k: p.detach().numpy() for k, p in ArchitectureGenerator(space).state_dict().items()
        },
        "shared_statistics": random_shared(space, rng),
        "template": template_of("nano-cnn"),
        "provenance": {},
    }
    save_bundle(folder, **(given | changes))
    return load_bundle(folder), given


def test_statistics_for_all_archs_are_the_first_of_the_widest(tmp_path):
    bundle, given = shared_bundle(tmp_path / "bundle")
    space = bundle.space
    arch = bundle.answer(space.min_flops)
    wanted = given["shared_statistics"]
    for name, (mean, variance) in bundle.arch_statistics(arch).items():
        np.testing.assert_array_equal(variance, wanted.norms[name][1][: len(mean)])
        if name != "stages.1.0.project.norm":
            np.testing.assert_array_equal(mean, wanted.norms[name][0][: len(mean)])
    weight = bundle.weights["stages.1.0.project.weight"][..., 0, 0]
    rows, read = space.weight["stages.1.0.project.weight"].shape_at(arch)[:2]
    centre = wanted.centres["stages.1.0.project"]
    assert read < len(centre)
    mean, _ = bundle.arch_statistics(arch)["stages.1.0.project.norm"]
    moved = weight[:rows, :read] @ centre[:read]
    np.testing.assert_allclose(
        mean, wanted.norms["stages.1.0.project.norm"][0][:rows] + moved, rtol=1e-5
    )
    onnx.checker.check_model(bundle.build_onnx(arch))


def test_half_precision_at_rest_is_exact_in_use(tmp_path):
    whole, given = shared_bundle(tmp_path / "whole")
    half, _ = shared_bundle(tmp_path / "half", half=True)
    for name, array in given["weights"].items():
        assert half.weights[name].dtype == np.float32
        np.testing.assert_array_equal(half.weights[name], array)
        np.testing.assert_array_equal(whole.weights[name], array)
    sizes = [(tmp_path / b / "supernet.safetensors").stat().st_size for b in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_bundle_begins_at_its_smallest_answer(tmp_path):
    """Which need not be the smallest subnet of the space."""
    space = get_space("nano-cnn")
    flops = space.flops(space.largest)
    bundle, _ = shared_bundle(tmp_path / "bundle", answers=[(float(flops), space.largest)])
    assert bundle.min_flops == flops > space.min_flops
    with pytest.raises(ValueError, match="below the smallest subnet"):
        bundle.answer(flops - 1)
    told = describe_bundle(bundle)
    assert told["flops"] == {"min": flops, "max": flops}
    assert told["smallest"] == told["largest"]
    assert told["params"]["min"] == bundle.space.params(space.largest)


def test_the_card_is_read_and_decides_no_version(tmp_path):
    first, _ = shared_bundle(tmp_path / "first", card="# What it is\n")
    second, _ = shared_bundle(tmp_path / "second")
    assert (first.card, second.card) == ("# What it is\n", "")
    assert first.version == second.version


def test_a_bundle_that_calls_held_out_accuracies_by_their_earlier_name_has_them(folder):
    document = json.loads((folder / "bundle.json").read_text())
    for row in document["frontier"]:
        row["val_accuracy"] = row.pop("held_out_accuracy")
    document["version"] = version_of(document)
    (folder / "bundle.json").write_text(json.dumps(document))
    assert all(row.held_out_accuracy == 0.1 for row in load_bundle(folder).frontier)


def test_an_arch_of_known_accuracy_answers_budgets_just_above_it(tmp_path):
    bundle = load_bundle(make_bundle("nano-vit", tmp_path / "bundle"))
    space, rng = bundle.space, np.random.default_rng(0)
    archs = sorted({space.random_arch(rng) for _ in range(200)}, key=space.flops)
    good, better = next(
        (a, b)
        for a, b in itertools.pairwise(archs[20:])
        if space.flops(a) < space.flops(b) < 1.01 * space.flops(a)
    )

    def known(*accuracies):
        rows = [
            FrontierRow(float(space.flops(arch)), arch, space.flops(arch), 1, accuracy, None)
            for arch, accuracy in zip((good, better), accuracies, strict=True)
        ]
        return replace(bundle, frontier=tuple(rows), answers=())

    budget = 1.003 * space.flops(better)
    assert known(0.8, 0.7).answer(budget) == good
    assert known(0.7, 0.8).answer(budget) == better
    assert known(0.7, 0.8).answer(space.flops(good)) == good
    own = answer_within(bundle.policy, budget)
    assert known(None, None).answer(budget) == own
    assert known(0.8, 0.7).answer(1.1 * budget) == answer_within(bundle.policy, 1.1 * budget)


def test_a_bundle_that_knows_how_sure_it_is_has_another_version(folder):
    before = load_bundle(folder)
    assert before.confidence is None
    after = load_bundle(make_sure(folder))
    assert after.version != before.version
    assert after.confidence is not None
    assert after.confidence.temperature(before.min_flops) == 1.0


@pytest.mark.parametrize("space", ["nano-cnn", "nano-vit"])
def test_what_shares_a_budget_keeps_it(space, tmp_path):
    """One of them has BatchNorm, and stores its answers; of the other any arch is one."""
    bundle = load_bundle(make_sure(make_bundle(space, tmp_path / "nano")))
    low, high = bundle.min_flops, bundle.max_flops

    @settings(deadline=None)
    @given(budget=st.floats(low, 3 * high))
    def holds(budget):
        pair = bundle.pair(budget)
        assert (pair is None) == (budget < bundle.confidence.pairs[0][0])
        if pair is not None:
            first, second = map(bundle.space.flops, pair)
            assert first < second
            assert first + second <= budget

    holds()
    flops = tuple(bundle.space.flops(arch) for arch in bundle.pair(math.inf))
    assert flops == bundle.confidence.pairs[-1][1:]


def test_a_bundle_without_confidence_says_what_to_do(original):
    with pytest.raises(ValueError, match=r"how sure it is; .*trainer\.confidence"):
        load_bundle(original).pair(math.inf)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["temperatures"][0].update(temperature=0),
            r"\[0\].temperature is 0",
        ),
        (lambda c: c["temperatures"][0].update(temperature=1e-320), "equal to 0.001"),
        (lambda c: c["temperatures"].reverse(), "temperatures must ascend"),
        (lambda c: c["temperatures"].clear(), "must be there"),
        (lambda c: c["pairs"].reverse(), "pairs must ascend"),
        (lambda c: c["pairs"][0].update(budget_flops=1), "do not share 1"),
        (lambda c: c["pairs"][0].update(second_flops=1), "do not share"),
        (lambda c: c["pairs"][0].update(first_flops=7), "is answered has 7 FLOPs"),
        (lambda c: c["pairs"][0].pop("first_flops"), "first_flops"),
        (lambda c: c.pop("images"), "images"),
    ],
)
def test_what_is_wrong_with_a_confidence_is_named(folder, change, words):
    make_sure(folder)
    edit(folder, lambda document: change(document["confidence"]))
    refused(folder, words)
