"""Photo sets for experiments: what is written is what training then reads."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import photo_folder, photos_to_teach
from models.bundle.folder import load_bundle
from tests.bundles import make_bundle
from trainer.data.reading import read_source


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four classes of ten photos, each of its own colour."""
    where = tmp_path_factory.mktemp("photos")
    for index in range(40):
        name = f"class {index % 4}"
        (where / name).mkdir(exist_ok=True)
        colour = (6 * index, 250 - 6 * index, 40 * (index % 4))
        Image.new("RGB", (20, 20), colour).save(where / name / f"{index}.png")
    return where


def test_a_folder_has_some_photos_of_some_classes_and_tests_on_others(photos, tmp_path, capsys):
    asked = ["--out", str(tmp_path), "--classes", "2", "--each", "3", "--test", "5"]
    assert photo_folder.main([str(photos), *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["classes"], told["train"], told["test"]) == (2, 6, 10)
    found = read_source(str(tmp_path))
    assert found.classes == ("class 0", "class 3")
    assert found.test is not None
    assert np.bincount(found.train.labels).tolist() == [3, 3]
    contents = {part.read(i) for part in (found.train, found.test) for i in range(len(part))}
    assert len(contents) == 16, "no photo is on both sides"


@pytest.mark.slow
def test_photos_get_the_classes_and_the_answers_of_a_bundle(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos_to_teach, "TEST", 3)
    bundle, out = make_bundle("nano-cnn", tmp_path / "bundle"), tmp_path / "out"
    asked = ["--data", str(photos), "--each", "12", "--out", str(out)]
    assert photos_to_teach.main([str(bundle), *asked]) == 0
    assert json.loads(capsys.readouterr().out)["photos"] == 12
    found = read_source(str(out))
    assert found.classes == load_bundle(bundle).labels
    assert found.test is not None
    contents = {part.read(i) for part in (found.train, found.test) for i in range(len(part))}
    assert (len(found.train), len(found.test), len(contents)) == (9, 3, 12)
    assert contents <= {file.read_bytes() for file in photos.rglob("*.png")}
