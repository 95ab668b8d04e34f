"""python -m trainer.evaluate: the served answers, by what right is, with intervals."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from models.bundle.folder import load_bundle
from models.bundle.manifest import version_of
from tests.bundles import make_bundle
from trainer.evaluate import main
from trainer.recipes.config import get_recipe
from trainer.scores import Scores, confused


def test_scores_count_what_is_right():
    logits = np.zeros((4, 7), np.float32)
    logits[[0, 1, 2, 3], [0, 1, 2, 2]] = 3
    logits[3, [3, 4, 5, 6, 1]] = (2.5, 2, 1.5, 1, 0.5)
    scores = Scores.of(logits, np.array([0, 1, 3, 0]))
    assert scores.accuracy == 0.5
    assert scores.top5.tolist() == [True, True, True, False]
    assert scores.per_class()[:4] == [(1, 2), (1, 1), (0, 0), (0, 1)]
    assert confused(scores.confusion()) == [(0, 2, 1), (3, 2, 1)]
    assert scores.worst(5) == [3, 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photos in folders that are called as the bundle's labels; one is broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(6):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(file, "PNG")
        place = folder / f"class {index % 3}"
        place.mkdir(exist_ok=True)
        (place / f"{index}.png").write_bytes(file.getvalue())
    (folder / "class 0" / "broken.png").write_bytes(file.getvalue()[:60])
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano")


def test_every_answer_is_scored_and_broken_images_are_named(bundle, data, capsys):
    assert main([str(bundle), "--data", str(data), "--budgets", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    loaded = load_bundle(bundle)
    assert "broken.png" in err
    assert len(result["broken"]) == 1
    flops = [row["flops"] for row in result["answers"]]
    assert flops == sorted(flops)
    assert flops[0] == loaded.min_flops
    for row in result["answers"]:
        low, high = row["accuracy_95"]
        assert row["images"] == 6
        assert low <= row["accuracy"] <= high
        assert row["accuracy"] <= row["top5"]
        assert sum(per["images"] for per in row["per_class"].values()) == 6
        wrong = sum(pair["images"] for pair in row["confusion"])
        assert wrong == round(6 * (1 - row["accuracy"]))
    assert result["mean_of_answers"] == len(flops)
    # every budget of a fine grid gets the largest answer within it
    accuracy = {row["flops"]: row["accuracy"] for row in result["answers"]}
    grid = np.linspace(flops[0], loaded.space.max_flops, 100_001)
    got = [flops[place - 1] for place in np.searchsorted(flops, grid, side="right")]
    assert result["mean_flops"] == pytest.approx(np.mean(got), rel=1e-3)
    assert result["mean_accuracy"] == pytest.approx(np.mean([accuracy[f] for f in got]), abs=1e-3)


def test_against_itself_the_largest_agrees(bundle, data, capsys):
    assert main([str(bundle), "--data", str(data), "--against", str(bundle), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answers"][-1]["accuracy"] == 1.0


def test_some_of_the_images(bundle, data, capsys):
    assert main([str(bundle), "--data", str(data), "--rows", "1::2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answers"][0]["images"] + len(result["broken"]) == 3


def test_the_table_is_for_people(bundle, data, capsys):
    assert main([str(bundle), "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "the largest knows least" in said
    before, _, after = said.partition("budgets spread evenly over these ")
    assert after.startswith(f"{len(before.splitlines()) - 1} answers: ")


def test_images_that_trained_are_told_of_and_a_run_leaves_them_out(data, tmp_path, capsys):
    """A folder without a test part is one training set, of which a run tests on a fifth."""
    own, run = tmp_path / data.name, tmp_path / "run"
    for index in range(60):
        (own / f"class {index % 10}").mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(own / f"class {index % 10}" / f"{index}.png")
    bundle = make_bundle("nano-cnn", tmp_path / "bundle")
    document = json.loads((bundle / "bundle.json").read_text())
    document["provenance"]["data"] = own.name
    document["version"] = version_of(document)
    (bundle / "bundle.json").write_text(json.dumps(document))
    run.mkdir()
    (run / "recipe.json").write_text(get_recipe("digits").model_dump_json())
    words = [str(bundle), "--data", str(own), "--json"]
    for more, images, warned in (([], 60, True), (["--run", str(run)], 10, False)):
        assert main([*words, *more]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["answers"][0]["images"] == images
        assert ("images that it has seen are counted too; --run RUN" in err) == warned


def test_mistakes_are_one_line(bundle, data, tmp_path, capsys):
    strange = tmp_path / "strange"
    (strange / "cat").mkdir(parents=True)
    for index, file in enumerate(sorted((data / "class 1").iterdir())):
        (strange / "cat" / file.name).write_bytes(file.read_bytes())
        other = strange / "class 1"
        other.mkdir(exist_ok=True)
        (other / f"{index}.png").write_bytes(file.read_bytes())
    for arguments, said in (
        ([str(bundle), "--data", str(strange)], "no class 'cat'; compare with another bundle"),
        ([str(bundle), "--data", str(data), "--threads", "-2"], "--threads is -2: give 1 or more"),
        ([str(bundle), "--data", str(tmp_path / "none")], "none"),
        ([str(tmp_path), "--data", str(data)], "is not a bundle"),
        ([str(bundle), "--data", str(data), "--budgets", "1"], "give 2 or more"),
        ([str(bundle), "--data", str(data), "--rows", "90:"], "give some of 7"),
        ([str(bundle), "--data", str(data), "--rows", "::0"], "give some of 7"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
