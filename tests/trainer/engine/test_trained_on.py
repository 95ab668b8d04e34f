"""A run's data are told from others before they are cut anew: into what trained, and the rest."""

import json

import pytest

from tests.bundles import make_bundle
from tests.trainer.image_data import encoded_image, write_folder
from trainer.data.reading import load_splits, read_source
from trainer.engine.checkpoint import CHECKPOINT_NAME, save_checkpoint
from trainer.engine.trained_on import in_words, parts_of_run, refuse_other_data
from trainer.recipes.config import get_recipe

CLASSES = {f"class {number}": 20 for number in range(10)}


@pytest.fixture
def photos(tmp_path):
    return write_folder(tmp_path / "photos", CLASSES)


@pytest.fixture
def run(tmp_path, photos):
    """What is left of a run on the photos: its recipe and a checkpoint."""
    folder, recipe = tmp_path / "run", get_recipe("digits")
    folder.mkdir()
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    save_checkpoint(folder, {"step": 1, "trained_on": words(photos)})
    return folder


def words(photos):
    return in_words(load_splits(str(photos), resolution=16, held_out_share=0.1, seed=0))


def one_more(photos):
    (photos / "class 3" / "000a.png").write_bytes(encoded_image(1000))


def bundle_of(run, **told):
    """Let the run have a bundle, and no checkpoint."""
    (run / CHECKPOINT_NAME).unlink()
    manifest = make_bundle("nano-cnn", run / "bundle") / "bundle.json"
    document = json.loads(manifest.read_text())
    document["provenance"] |= told
    manifest.write_text(json.dumps(document))


def test_a_run_is_cut_as_it_was(run, photos, capsys):
    its = parts_of_run(read_source(str(photos)), run)
    assert (len(its.held_out), len(its.test)) == (20, 40)
    assert not its.skip_broken
    assert capsys.readouterr().err == ""


def test_one_image_more_is_refused_as_it_changes_which_ones_trained(run, photos):
    one_more(photos)
    with pytest.raises(
        ValueError, match=rf"{run} was trained on 140 \+ 20 images .* the data here"
    ):
        parts_of_run(read_source(str(photos)), run)


@pytest.mark.parametrize("is_older", [False, True])
def test_a_bundle_tells_it_where_the_checkpoint_is_gone(run, photos, is_older):
    counts = {"train_images": 140, "val_images": 20}
    bundle_of(run, **(counts if is_older else {"trained_on": words(photos)}))
    assert len(parts_of_run(read_source(str(photos)), run).test) == 40
    one_more(photos)
    with pytest.raises(ValueError, match="which of these images have trained is not known"):
        parts_of_run(read_source(str(photos)), run)


def test_where_nothing_tells_it_that_is_said(run, photos, capsys):
    (run / CHECKPOINT_NAME).unlink()
    assert len(parts_of_run(read_source(str(photos)), run).test) == 40
    assert f"{run} does not say on what it was trained" in capsys.readouterr().err


def test_broken_images_that_a_run_left_out_are_of_its_data(run, photos):
    recipe = get_recipe("digits").replace(skip_broken=True)
    (run / "recipe.json").write_text(recipe.model_dump_json())
    save_checkpoint(run, {"step": 1, "trained_on": words(photos).replace("140", "139")})
    assert parts_of_run(read_source(str(photos)), run).skip_broken
    one_more(photos)
    with pytest.raises(ValueError, match="was trained on 139"):
        parts_of_run(read_source(str(photos)), run)


def test_a_class_between_others_that_was_renamed_is_noticed(photos):
    before = words(photos)
    (photos / "class 3").rename(photos / "class 8a")
    now = words(photos)
    with pytest.raises(ValueError, match="the checkpoint was trained on"):
        refuse_other_data({"trained_on": before}, now)
    older = before.partition(", labels")[0]
    refuse_other_data({"trained_on": older}, now)  # which did not say it
    with pytest.raises(ValueError, match="the checkpoint was trained on"):
        refuse_other_data({"trained_on": older.replace("140", "139")}, now)
