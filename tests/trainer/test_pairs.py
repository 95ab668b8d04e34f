"""Pairs of subnets: temperatures, who answers first, and what that wins, on made-up answers."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from models.bundle.confidence import Confidence
from models.bundle.folder import add_confidence, load_bundle
from tests.bundles import make_bundle
from trainer.confidence import main
from trainer.evaluate import main as evaluate
from trainer.pairs import LOSES_AT_MOST, SHOWN_AT, Curve, curve, fit_confidence
from trainer.recipes.config import get_recipe, with_settings
from trainer.scores import Scores, fit_temperature

IMAGES = 4_000


def answers(share, *, rng, scale=1.0):
    """Logits of a subnet whose probabilities are right on average, times ``scale``."""
    labels = np.arange(IMAGES) % 4
    easy = rng.permutation(IMAGES) < share * IMAGES
    logits = rng.normal(0, 0.01, (IMAGES, 4))
    # an easy image: 99 of 100 are right; else a guess
    hit = np.where(easy, rng.random(IMAGES) < 0.99, rng.random(IMAGES) < 0.25)
    said = np.where(hit, labels, (labels + 1 + rng.integers(0, 3, IMAGES)) % 4)
    logits[np.arange(IMAGES), said] += np.where(easy, np.log(0.99 / 0.01 * 3), 0.02)
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_temperature_makes_probabilities_true(scale):
    logits, labels = answers(0.7, rng=np.random.default_rng(0), scale=scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.1)
    scores = Scores.fitted(logits, labels)
    assert scores.confidence.mean() == pytest.approx(scores.accuracy, abs=0.01)
    easy = scores.confidence > 0.9
    assert scores.right[easy].mean() == pytest.approx(0.99, abs=0.01)


@pytest.mark.parametrize("images", [30, 1_000])
def test_a_subnet_that_has_all_images_right_is_not_sure_of_everything(images):
    """That nothing was wrong of n shows no more than about 1 in n."""
    labels = np.arange(images) % 4
    logits = np.random.default_rng(0).normal(size=(images, 4)) + 7 * np.eye(4)[labels]
    unsure = 1 - Scores.fitted(logits, labels).confidence.mean()
    assert 0.5 / images < unsure < 1.5 / images


@pytest.fixture(scope="module")
def scores():
    """A small subnet, a hardly better one that costs four times as much, and a good one."""
    rng = np.random.default_rng(1)
    shares = {100: 0.6, 400: 0.62, 1000: 0.95}
    return {flops: Scores.fitted(*answers(share, rng=rng)) for flops, share in shares.items()}


def test_the_small_one_is_first_where_the_budget_has_room_for_the_good_one(scores):
    confidence = fit_confidence(scores, "made up")
    assert confidence.pair(1099) is None
    assert confidence.pair(1100) == (100, 1000)
    assert confidence.pair(1e9) == (100, 1000)
    assert confidence.images == IMAGES


def test_no_pair_is_used_that_is_less_right_than_the_largest_alone(scores):
    confidence = fit_confidence(scores, "made up")
    for budget in range(100, 3000, 50):
        pair = confidence.pair(budget)
        if pair is not None:
            largest = max(flops for flops in scores if flops <= budget)
            (point,) = (p for p in curve(scores, budget, pair).points if p.confidence == 0.9)
            assert sum(pair) <= budget
            assert point.accuracy >= scores[largest].accuracy - LOSES_AT_MOST


def test_a_curve_has_what_is_spent_and_what_it_wins(scores):
    pair = curve(scores, None, (100, 1000))
    assert [point.confidence for point in pair.points] == list(SHOWN_AT)
    point = next(point for point in pair.points if point.confidence == 0.7)
    unsure = scores[100].confidence < 0.7
    assert point.spent_flops == pytest.approx(100 + 1000 * unsure.mean())
    right = np.where(unsure, scores[1000].right, scores[100].right)
    assert point.accuracy == right.mean()
    alone = np.interp(point.spent_flops, list(scores), [one.accuracy for one in scores.values()])
    assert point.alone == pytest.approx(alone)
    assert point.gain_95[0] < point.gain < point.gain_95[1]
    assert point.gain_95[0] > 0.05
    assert Curve.from_json(json.loads(json.dumps(pair.to_json()))) == pair


def test_an_interval_of_a_gain_holds_what_chance_does():
    """Over many draws of images, the gain varies as its interval says."""
    gains, widths = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        one = {f: Scores.fitted(*answers(s, rng=rng)) for f, s in ((100, 0.6), (1000, 0.9))}
        (point,) = (p for p in curve(one, None, (100, 1000)).points if p.confidence == 0.7)
        gains.append(point.gain)
        widths.append((point.gain_95[1] - point.gain_95[0]) / 2 / 1.96)
    assert np.std(gains) == pytest.approx(np.mean(widths), rel=0.35)


def test_a_single_subnet_has_a_temperature_and_no_pair(scores):
    confidence = fit_confidence({100: scores[100]}, "made up")
    assert confidence.pairs == ()
    assert confidence.temperature(100) == scores[100].temperature


# ---------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 photos, in folders that are called as the bundle's labels."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(40):
        (folder / f"class {index % 10}").mkdir(exist_ok=True)
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        noise.save(folder / f"class {index % 10}" / f"{index}.png")
    return folder


def test_the_command_fits_a_bundle_and_evaluate_draws_it(bundle, photos, tmp_path, capsys):
    before = load_bundle(bundle)
    assert main([str(bundle), "--data", str(photos), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    after = load_bundle(bundle)
    assert said["previous"] == before.version
    assert said["version"] == after.version
    assert after.confidence is not None
    assert after.confidence.images == 40
    assert len(after.confidence.temperatures) == len(after.archs())
    plot = tmp_path / "plot.png"
    words = [str(bundle), "--data", str(photos), "--plot", str(plot), "--json"]
    assert evaluate(words) == 0
    with Image.open(plot) as drawn:
        assert drawn.size[0] > 500
    curves = json.loads(capsys.readouterr().out)["confidence"]
    assert len(curves) == len({after.confidence.pair(b) for b in (after.max_flops, 1e18)} - {None})


def test_a_run_that_skips_broken_images_fits_without_them(bundle, photos, tmp_path, capsys):
    own, run = tmp_path / "own", tmp_path / "run"
    for part in ("train", "test"):
        shutil.copytree(photos, own / part)
    for image in (own / "train" / "class 0").iterdir():
        image.write_bytes(b"no image")
    run.mkdir()
    words = [str(bundle), "--data", str(own), "--run", str(run), "--json", "--budgets", "2"]
    for skip, status in (("false", 2), ("true", 0)):
        recipe = with_settings(get_recipe("digits"), ["held_out_images=30", f"skip_broken={skip}"])
        (run / "recipe.json").write_text(recipe.model_dump_json())
        assert main(words) == status
    out, err = capsys.readouterr()
    assert json.loads(out)["confidence"]["images"] == 30 - err.count("left out ")
    assert "left out " in err


def test_a_pair_that_a_bundle_cannot_answer_leaves_it_as_it_was(bundle):
    before = (bundle / "bundle.json").read_bytes()
    first, *_, last = load_bundle(bundle).listed
    unknown = Confidence(((first, 1.0),), ((first + last, first + 1, last),), 25, "none")
    with pytest.raises(ValueError, match=f"no subnet that is answered has {first + 1:,} FLOPs"):
        add_confidence(bundle, unknown)
    assert (bundle / "bundle.json").read_bytes() == before


def test_mistakes_are_one_line(bundle, photos, tmp_path, capsys):
    few = tmp_path / "few"
    for index in range(2):
        (few / f"class {index}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(few / f"class {index}" / "one.png")
    with_test = tmp_path / "both"
    for part in ("train", "test"):
        shutil.copytree(photos, with_test / part)
    for arguments, said in (
        ([str(bundle), "--data", str(few)], "2 images are too few: give 25 or more"),
        ([str(bundle), "--data", str(with_test)], "name the run"),
        ([str(bundle), "--data", str(photos), "--run", str(tmp_path)], "recipe.json"),
        ([str(bundle), "--data", str(photos), "--budgets", "1"], "give 2 or more"),
        ([str(tmp_path), "--data", str(photos)], "is not a bundle"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
