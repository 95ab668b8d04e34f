"""python -m trainer.quantize: int8 on labelled images, with accuracies and confidence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import trainer.quantize
from models.bundle.folder import load_bundle
from tests.bundles import make_bundle, make_sure
from trainer.evaluate import main as evaluate
from trainer.quantize import main
from trainer.recipes.config import get_recipe, with_settings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_sure(make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 photos, in folders that are called as the bundle's labels."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(60):
        (folder / f"class {index % 10}").mkdir(exist_ok=True)
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        noise.save(folder / f"class {index % 10}" / f"{index:02}.png")
    return folder


def test_accuracies_and_confidence_are_int8s_own(bundle, photos, tmp_path, capsys):
    out = tmp_path / "int8"
    assert main([str(bundle), "--data", str(photos), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = load_bundle(out)
    assert told["version"] == made.version
    assert told["previous"] == load_bundle(bundle).version
    assert (told["int8"]["calibration_images"], told["int8"]["images"]) == (30, 30)
    small = made.at("int8")
    assert small.confidence is not None
    assert small.confidence.images == 30
    assert made.confidence == load_bundle(bundle).confidence
    assert {row.test_accuracy for row in small.frontier} == {
        row["accuracy"] for row in told["int8"]["rows"]
    }
    # what evaluate says of the images that measured, in both precisions
    words = [str(out), "--data", str(photos), "--rows", "1::2", "--budgets", "2", "--json"]
    for precision, field in (("fp32", "fp32_accuracy"), ("int8", "accuracy")):
        assert evaluate([*words, "--precision", precision]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["precision"] == precision
        right = {row["id"]: row["accuracy"] for row in said["answers"]}
        both = [row for row in told["int8"]["rows"] if row["id"] in right]
        assert both
        for row in both:
            assert row[field] == right[row["id"]]
    # once more, in place, for people
    assert main([str(out), "--data", str(photos), "--out", str(out)]) == 0
    assert "30 images" in capsys.readouterr().out
    assert load_bundle(out).version == made.version


def test_mistakes_are_one_line(bundle, photos, tmp_path, capsys):
    few = tmp_path / "few"
    for index in range(2):
        shutil.copytree(photos / f"class {index}", few / f"class {index}")
    broken = shutil.copytree(photos, tmp_path / "broken")
    (broken / "class 0" / "00.png").write_bytes(b"no image")
    both = tmp_path / "both"
    for part in ("train", "test"):
        shutil.copytree(photos, both / part)
    out = ["--out", str(tmp_path / "out")]
    for arguments, said in (
        ([str(bundle), "--data", str(few), *out], "6 images are too few: give 25 or more"),
        ([str(bundle), "--data", str(broken), *out], "00.png: "),
        ([str(bundle), "--data", str(both), *out], "name the run"),
        ([str(bundle), "--data", str(photos), "--images", "1", *out], "give 25 or more"),
        ([str(bundle), "--data", str(photos), "--out", str(tmp_path)], "exists"),
        ([str(tmp_path), "--data", str(photos), *out], "is not a bundle"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not (tmp_path / "out").exists()


def test_classes_that_a_bundle_lacks_are_told_before_anything_is_calibrated(
    bundle, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(trainer.quantize, "calibrated", None)
    strange = shutil.copytree(photos, tmp_path / "strange")
    (strange / "class 9").rename(strange / "dog")
    assert main([str(bundle), "--data", str(strange), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.endswith("has no class 'dog'; name the folders as its labels\n")


def test_a_run_that_skips_broken_images_leaves_them_out_of_all_that_is_counted(
    bundle, photos, tmp_path, capsys
):
    both, run = tmp_path / "both", tmp_path / "run"
    for part in ("train", "test"):
        shutil.copytree(photos, both / part)
        (both / part / "class 0" / "00.png").write_bytes(b"no image")
    run.mkdir()
    chosen = ["held_out_images=50", "skip_broken=true"]
    recipe = with_settings(get_recipe("digits"), chosen)
    (run / "recipe.json").write_text(recipe.model_dump_json())
    words = [str(bundle), "--data", str(both), "--run", str(run), "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    told, held_out = json.loads(out)["int8"], 50 - err.count("train/class 0/00.png")
    assert (told["calibration_images"], told["images"]) == (held_out, 59)
    assert err.count("left out ") == err.count("00.png")
    made = load_bundle(tmp_path / "out").at("int8")
    assert made.confidence is not None
    assert made.confidence.images == held_out


def test_with_a_run_its_held_out_images_calibrate_and_test_images_measure(
    bundle, photos, tmp_path, capsys
):
    both, run = tmp_path / "both", tmp_path / "run"
    for part in ("train", "test"):
        shutil.copytree(photos, both / part)
    run.mkdir()
    recipe = with_settings(get_recipe("digits"), ["held_out_images=30"])
    (run / "recipe.json").write_text(recipe.model_dump_json())
    words = [str(bundle), "--data", str(both), "--run", str(run), "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["int8"]
    assert (told["calibration_images"], told["images"]) == (30, 60)
    assert "held out by" in told["calibrated_on"]
    assert "test images" in told["measured_on"]
