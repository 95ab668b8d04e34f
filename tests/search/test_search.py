"""Searches keep the budget, find what is better, and go on where they were stopped."""

import json
import shutil
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

import trainer.finish
import trainer.report.plots
import trainer.run
from models.bundle.manifest import version_of
from models.spaces import get_space
from search.__main__ import SEARCHES, main
from search.log import TriedArchs
from search.supernet import open_supernet
from tests.bundles import make_bundle, say_trained_alone, template_of
from tests.trainer.conftest import settings
from tests.trainer.image_data import write_folder
from trainer.data.reading import load_splits
from trainer.engine.checkpoint import load_checkpoint, save_checkpoint
from trainer.job import alone
from trainer.recipes.config import read_recipe

SPACE = get_space("nano-cnn")
BUDGET = 0.6 * SPACE.max_flops
every_search = pytest.mark.parametrize("name", SEARCHES)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    with (
        patch.object(trainer.finish, "export_template", lambda _: template_of("nano-cnn")),
        patch.object(trainer.report.plots, "plotted", lambda *_: []),
    ):
        assert trainer.run.main([*settings("epochs=1"), "--out", str(folder)]) == 0
    return folder


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def kernels(arch):
    """A made-up accuracy: large kernels are right."""
    chosen = SPACE.arch_to_json(arch)["kernel_size"]
    return sum(size == 5 for size in chosen) / 5 + SPACE.flops(arch) / SPACE.max_flops / 10


@every_search
def test_what_is_found_is_the_best_of_what_was_tried_and_within_the_budget(name):
    tried = TriedArchs(SPACE, kernels, None, {})
    found = SEARCHES[name](SPACE, BUDGET, tried, 16, rng())
    assert len(tried.scores) <= 16
    assert all(SPACE.flops(arch) <= BUDGET for arch in tried.scores)
    assert kernels(found) == max(tried.scores.values())
    assert found == SEARCHES[name](SPACE, BUDGET, kernels, 16, rng())


def test_evolution_finds_more_than_chance():
    space = get_space("cifar-cnn")
    wanted = space.indices(space.random_arch(np.random.default_rng(0)))

    def near(arch):
        return -float(abs(space.indices(arch) - wanted).sum())

    best = {
        name: [near(search(space, 1e7, near, 40, rng(seed))) for seed in range(3)]
        for name, search in SEARCHES.items()
    }
    assert sum(best["evolutionary"]) > sum(best["random"])


@every_search
def test_a_search_that_was_stopped_goes_on_and_ends_as_if_it_had_not(name, tmp_path):
    class Stop(Exception):
        pass

    asked = []

    def stops(arch):
        asked.append(arch)
        if len(asked) == 12:
            raise Stop
        return kernels(arch)

    file, settings = tmp_path / "tried.jsonl", {"flops": BUDGET}
    whole = SEARCHES[name](SPACE, BUDGET, kernels, 16, rng())
    with pytest.raises(Stop):
        SEARCHES[name](SPACE, BUDGET, TriedArchs(SPACE, stops, file, settings), 16, rng())
    again = TriedArchs(SPACE, stops, file, settings)
    assert len(again.scores) == 11
    assert SEARCHES[name](SPACE, BUDGET, again, 16, rng()) == whole
    assert len(set(asked)) == len(asked) - 1  # the one at which it stopped
    with pytest.raises(ValueError, match="another search"):
        TriedArchs(SPACE, kernels, file, {"flops": 1})


def test_a_line_that_was_cut_off_is_tried_again(tmp_path):
    file, settings = tmp_path / "tried.jsonl", {"flops": BUDGET}
    tried = TriedArchs(SPACE, kernels, file, settings)
    for arch in (SPACE.smallest, SPACE.largest):
        tried(arch)
    whole = file.read_text()
    for length in range(0, len(whole), 7):
        file.write_text(whole[:length])
        again = TriedArchs(SPACE, kernels, file, settings)
        assert len(again.scores) == max(whole[:length].count("\n") - 1, 0)
        for arch in (SPACE.smallest, SPACE.largest):
            again(arch)
        assert file.read_text() == whole


def test_a_file_that_is_something_else_is_named_and_stays(tmp_path):
    file, settings = tmp_path / "tried.jsonl", {"flops": BUDGET}
    TriedArchs(SPACE, kernels, file, settings)(SPACE.smallest)
    head, row = file.read_text().splitlines()
    for text, said in (
        ("words", r"is of another search \(words\)"),
        ("words\nmore", "is of another search"),
        (f"{head}\n{row}\nwords\n{row}\n", r"line 3, is not a JSON object"),
        (f"{head}\n{{}}\n", r"line 2, is not an arch that was tried"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{file}.*{said}"):
            TriedArchs(SPACE, kernels, file, settings)
        assert file.read_text() == text


def test_the_command_compares_a_search_with_the_generator(trained_run, capsys, tmp_path):
    out = tmp_path / "tried.jsonl"
    for supernet in (trained_run, trained_run / "bundle"):
        arguments = ["random", str(supernet), "--flops", "1M", "--data", "digits", "--json"]
        arguments += ["--evaluations", "3", "--out", str(out) + supernet.name]
        assert main(arguments) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["evaluations"] == 3
        for name in ("found", "generator"):
            row = result[name]
            assert row["flops"] == SPACE.flops(SPACE.arch_from_json(row["arch"])) <= 1e6
            assert 0 <= row["held_out_accuracy"] <= 1
            assert 0 <= row["test_accuracy"] <= 1


def test_a_bundle_is_tried_on_what_its_run_held_out(trained_run, tmp_path):
    run, bundle = (open_supernet(p, "digits") for p in (trained_run, trained_run / "bundle"))
    for its, other in zip(run.held_out, bundle.held_out, strict=True):
        assert torch.equal(its.images, other.images)
    told = json.loads((trained_run / "bundle" / "bundle.json").read_text())["provenance"]
    share = told["trained_with"]["recipe"]["held_out_share"]
    assert told["held_out"] == {"share": share, "images": 0}

    # where classes are unequal, a share of each is not the same as that many in proportion
    sizes = {f"train/class {name}": (10, 15, 25, 35)[name % 4] for name in range(10)}
    sizes |= {f"test/class {name}": 1 for name in range(10)}
    photos = str(write_folder(tmp_path / "photos", sizes))
    folder = make_bundle("nano-cnn", tmp_path / "bundle")
    document = json.loads((folder / "bundle.json").read_text())
    document["provenance"] |= {"held_out": {"share": 0.3, "images": 0}, "val_images": 57}
    document["version"] = version_of(document)
    (folder / "bundle.json").write_text(json.dumps(document))
    by_share, in_proportion = (
        load_splits(photos, resolution=16, seed=0, held_out_share=0.3, held_out_images=images)
        for images in (0, 57)
    )
    assert len(by_share.held_out) == len(in_proportion.held_out) == 57
    labels = torch.cat([batch.labels for batch in open_supernet(folder, photos).held_out])
    assert labels.tolist() == by_share.held_out.labels.tolist()
    assert labels.tolist() != in_proportion.held_out.labels.tolist()


def test_data_of_other_classes_is_refused(trained_run, tmp_path, capsys):
    photos = write_folder(tmp_path / "photos", {f"class {name}": 15 for name in range(10)})
    bundle = make_bundle("nano-cnn", tmp_path / "bundle")
    arguments = ["random", str(bundle), "--flops", "1M", "--evaluations", "2"]
    assert main([*arguments, "--data", str(photos)]) == 0

    def other_labels(of, change):
        document = json.loads((of / "bundle.json").read_text())
        document["labels"] = change(document["labels"])
        document["version"] = version_of(document)
        (of / "bundle.json").write_text(json.dumps(document))

    def swapped(names):
        return [*names[:3], names[4], names[3], *names[5:]]

    other_labels(bundle, swapped)
    capsys.readouterr()
    assert main([*arguments, "--data", str(photos)]) == 2
    told = (
        f"has 10 classes with 'class 3' at place 3, and {bundle} was trained on 10 with 'class 4'"
    )
    assert told in capsys.readouterr().err
    for path in (trained_run, trained_run / "bundle"):
        with pytest.raises(ValueError, match=f"and {path} was trained on .* give the data that"):
            open_supernet(path, str(photos))

    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    other_labels(run / "bundle", swapped)
    with pytest.raises(ValueError, match="digits has 10 classes with '3' at place 3"):
        open_supernet(run, "digits")
    few = write_folder(tmp_path / "few", {f"class {name}": 60 for name in range(5)})
    state = load_checkpoint(run)
    del state["trained_on"]  # as older commits wrote it
    save_checkpoint(run, state)
    with pytest.raises(ValueError, match="was trained on other classes; give the data"):
        open_supernet(run, str(few))


def test_a_bundle_whose_run_skipped_broken_images_is_searched_without_them(tmp_path):
    photos = write_folder(tmp_path / "photos", {f"class {name}": 15 for name in range(10)})
    next((photos / "class 3").iterdir()).write_bytes(b"no image")
    bundle = make_bundle("nano-cnn", tmp_path / "bundle")
    with pytest.raises(ValueError, match="remove it, or train with skip_broken=true"):
        open_supernet(bundle, str(photos))
    document = json.loads((bundle / "bundle.json").read_text())
    document["provenance"]["trained_with"] = {"recipe": {"skip_broken": True}}
    (bundle / "bundle.json").write_text(json.dumps(document))
    open_supernet(bundle, str(photos))


def test_a_bundle_is_not_searched_on_one_image_more_than_trained(tmp_path):
    """Its cut would hold out images that have trained."""
    photos = write_folder(tmp_path / "photos", {f"class {name}": 15 for name in range(10)})
    bundle = make_bundle("nano-cnn", tmp_path / "bundle")
    document = json.loads((bundle / "bundle.json").read_text())
    document["provenance"] |= {"train_images": 110, "val_images": 10}
    (bundle / "bundle.json").write_text(json.dumps(document))
    open_supernet(bundle, str(photos))
    shutil.copy(next((photos / "class 3").iterdir()), photos / "class 3" / "more.png")
    with pytest.raises(ValueError, match=r"was trained on 110 \+ 10 images of 10 classes"):
        open_supernet(bundle, str(photos))


def test_what_trained_one_arch_alone_is_not_searched(trained_run, tmp_path):
    run, bundle = tmp_path / "run", make_bundle("nano-cnn", tmp_path / "bundle")
    say_trained_alone(bundle, SPACE.smallest)
    shutil.copytree(trained_run, run)
    recipe = alone(read_recipe(run / "recipe.json"), json.dumps(SPACE.arch_to_json(SPACE.smallest)))
    (run / "recipe.json").write_text(recipe.model_dump_json())
    for path in (run, bundle):
        with pytest.raises(ValueError, match="trained 1 of the archs of its space alone"):
            open_supernet(path, "digits")


def test_scores_of_other_weights_are_not_taken_over(trained_run, tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "tried.jsonl"
    shutil.copytree(trained_run, run)
    arguments = ["random", str(run), "--flops", "1M", "--data", "digits", "--out", str(file)]
    assert main([*arguments, "--evaluations", "4", "--json"]) == 0
    assert main([*arguments, "--evaluations", "2", "--json"]) == 0
    whole, fewer = map(json.loads, capsys.readouterr().out.splitlines())
    assert (whole["evaluations"], fewer["evaluations"]) == (4, 2)

    state = load_checkpoint(run)
    next(iter(state["net"].values())).mul_(2)
    save_checkpoint(run, state)
    assert main([*arguments, "--evaluations", "4"]) == 2
    assert "is of another search" in capsys.readouterr().err


@every_search
def test_a_budget_beyond_the_largest_is_that_of_the_largest(name, trained_run, capsys):
    arguments = [name, str(trained_run), "--flops", "1G", "--data", "digits", "--json"]
    assert main([*arguments, "--evaluations", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["budget_flops"] == result["generator"]["flops"] == SPACE.max_flops


def test_images_are_read_as_the_bundle_says(tmp_path):
    """It keeps the middle of an image, which is white here."""
    bundle = make_bundle("nano-cnn", tmp_path / "bundle")
    document = json.loads((bundle / "bundle.json").read_text())
    document["preprocess"]["crop_ratio"] = 0.5
    document["version"] = version_of(document)
    (bundle / "bundle.json").write_text(json.dumps(document))
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (12, 12, 52, 52))
    for name in range(10):
        (tmp_path / "photos" / f"class {name}").mkdir(parents=True)
        for number in range(15):
            image.save(tmp_path / "photos" / f"class {name}" / f"{number}.png")
    supernet = open_supernet(bundle, str(tmp_path / "photos"))
    assert supernet.held_out.batch(0, 0).images.unique().tolist() == [2.0]  # (1 - mean) / std


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--flops": "10k"}, "below the smallest"),
        ({"--evaluations": "0"}, "--evaluations is 0"),
        ({"--threads": "-1"}, "--threads is -1: give 1 or more, or 0"),
        ({"supernet": "nowhere"}, "neither a run"),
        ({"supernet": "x" * 300}, "neither a run"),
        ({"--data": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(trained_run, change, told, capsys):
    options = {"--flops": "1M", "--data": "digits", "--evaluations": "2", **change}
    supernet = options.pop("supernet", str(trained_run))
    flat = [part for pair in options.items() for part in pair]
    assert main(["random", supernet, *flat]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
