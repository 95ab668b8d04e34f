"""The training program as a user runs it, on a few steps of digits."""

import json
import shutil

import numpy as np
import pytest
import torch

import trainer.run
from models.bundle.folder import load_bundle
from models.spaces import get_space
from tests.trainer.conftest import settings
from tests.trainer.image_data import write_folder
from trainer.evolution import children
from trainer.finish import undominated
from trainer.recipes.config import get_recipe, with_settings
from trainer.run import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    chosen = settings("epochs=2", "evaluate_every=1", "evaluation_budgets=3")
    assert main([*chosen, "--out", str(folder), "--json"]) == 0
    return folder


def test_a_run_leaves_what_it_promises(finished):
    bundle = load_bundle(finished / "bundle")
    assert bundle.name == "digits"
    assert len(bundle.frontier) == 3
    assert all(row.flops <= row.budget_flops for row in bundle.frontier)
    rows = json.loads((finished / "frontier.json").read_text())
    assert [row["id"] for row in rows] == [
        bundle.space.arch_id(row.arch) for row in bundle.frontier
    ]
    assert (finished / "report" / "report.md").is_file()
    kinds = {json.loads(x)["kind"] for x in (finished / "log.jsonl").read_text().splitlines()}
    assert {"start", "step", "groups", "generator", "evaluation"} <= kinds


def test_mistakes_are_one_line(tmp_path, finished, capsys):
    cases = [
        (["--recipe", "digit"], "did you mean 'digits'"),
        (["--set", "epoch=1"], "nearest: epochs"),
        (["--set", "epochs=many"], 'epochs is "many"; it should be a valid integer'),
        (["--set", "epochs=0"], "epochs is 0; it should be greater than or equal to 1"),
        (["--set", "sampler=shfit", "--out", str(tmp_path / "a")], "did you mean 'shift'"),
        (["--data", str(tmp_path / "none")], "does not exist"),
        (["--out", str(finished)], "resume it with"),
        (["--resume", str(tmp_path)], "holds no run"),
        (["--set", "bundle_name=a/b", "--dry-run"], "name 'a/b' cannot be a folder's"),
    ]
    for arguments, words in cases:
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert words in said.splitlines()[-1], said


def test_a_broken_recipe_is_named(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text("{")
    assert main(["--resume", str(tmp_path)]) == 2
    assert "recipe.json is not JSON" in capsys.readouterr().err


def test_answers_that_a_smaller_one_clearly_beats_are_dropped():
    def right(share, images):
        return np.arange(images) < share * images

    candidates = [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    shares = {"a": 0.5, "b": 0.8, "c": 0.7, "d": 0.797}
    many = {arch: right(share, 1000) for arch, share in shares.items()}
    assert undominated(candidates, many, 0.005) == [(1, "a"), (2, "b"), (4, "d")]


@pytest.mark.parametrize("images", [2, 5, 72])
def test_what_the_held_out_images_cannot_tell_is_not_decided_by_them(images):
    """72 images, of which the larger arch gets three wrong that the smaller gets right."""
    smaller, larger = np.ones(images, dtype=bool), np.arange(images) >= min(3, images)
    right = {"a": smaller, "b": larger}
    assert undominated([(1, "a"), (2, "b")], right, 0.005) == [(1, "a"), (2, "b")]


def test_children_are_new_and_of_the_space():
    space, rng = get_space("nano-cnn"), torch.Generator().manual_seed(0)
    parents = [space.smallest, space.largest]
    found = children(space, parents, parents, 40, rng)
    assert len(set(found)) == 40
    assert not set(found) & set(parents)
    assert all(space.min_flops <= space.flops(arch) <= space.max_flops for arch in found)
    assert children(space, parents, found, 3, rng) != found[:3]


@pytest.mark.usefixtures("without_plots")
def test_a_search_at_the_end_serves_what_is_more_accurate_than_all_smaller(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    assert main(["--resume", str(folder), "--set", "search_archs=30"]) == 0
    before, bundle = (load_bundle(f / "bundle") for f in (finished, folder))
    asked = before.provenance["answers_asked"]
    assert bundle.provenance["answers_asked"] == asked + 30
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (*_, tried) = [record["rows"] for record in records if record["kind"] == "answers"]
    assert len(tried) == asked + 30
    served = [row for row in tried if row["served"]]
    assert [row["flops"] for row in served] == sorted({row["flops"] for row in served})
    for row in served:
        smaller = [r["held_out_accuracy"] for r in tried if r["flops"] < row["flops"]]
        assert row["held_out_accuracy"] > max(smaller, default=-1)
    assert [bundle.space.arch_from_json(row["arch"]) for row in served] == [*bundle.archs()]
    best = max(row["held_out_accuracy"] for row in tried)
    assert bundle.frontier[-1].held_out_accuracy == best


@pytest.mark.usefixtures("without_plots")
def test_one_arch_alone_is_told_of_without_budgets_and_nothing_else_is_asked_of_it(
    tmp_path, capsys
):
    space = get_space("nano-cnn")
    small = space.arch_to_json(space.smallest)
    chosen = ["--arch", json.dumps(small), "--out", str(tmp_path / "run")]
    for setting, said in (
        ("sampler=uniform-budget", "leave out --set sampler=uniform-budget"),
        (f"sampler_options.archs={json.dumps([small])}", "leave out --set sampler_options.archs="),
        ("search_archs=5", "search_archs=5 tries archs that this run does not train"),
    ):
        assert main([*settings("epochs=1", setting), *chosen]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert main([*settings("epochs=1"), *chosen]) == 0
    told = capsys.readouterr().err
    assert "AG:" not in told
    assert "serve it: " in told


def test_too_few_images_to_decide_by_are_refused_with_the_number_it_takes(tmp_path, capsys):
    data = write_folder(tmp_path / "photos", {"cat": 10, "dog": 10})
    assert main(["--data", str(data), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "error: 2 held-out images are too few to decide by" in said
    assert "It takes 25: set held_out_images=25 or more" in said
    assert not (tmp_path / "run").exists()


def test_updates_of_the_distribution_are_fitted_to_the_run_and_a_run_without_any_is_said(
    tmp_path, capsys, monkeypatch
):
    recipe = get_recipe("digits").replace(shift_every=0)
    assert recipe.steps_between_updates(160) == 2
    assert recipe.updates(160) == 73
    assert recipe.steps_between_updates(55_000) == 100
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    short = settings("epochs=1", "shift_every=100")
    assert main([*short, "--out", str(tmp_path / "run")]) == 0
    assert "warning: B stays uniform: shift_every is 100, and" in capsys.readouterr().err


def test_a_resolution_that_the_space_does_not_read_is_refused(tmp_path, capsys):
    for side in (7, 128):
        assert main(["--set", f"resolution={side}", "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"resolution is {side}, but nano-cnn reads images of 16x16" in said


def test_settings_are_found_by_what_people_call_them():
    for key, near in {
        "lr": "optimizer.learning_rate",
        "weight_decay": "optimizer.weight_decay",
    }.items():
        with pytest.raises(ValueError, match=rf"no setting '{key}'; nearest: .*{near}"):
            with_settings(get_recipe("digits"), [f"{key}=0.1"])


@pytest.mark.usefixtures("without_plots")
def test_a_bundle_of_ones_own_photos_has_their_name_and_its_provenance_agrees_with_itself(
    finished, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "run")
    more = [part for setting in ("epochs=3", "bundle_name=mine") for part in ("--set", setting)]
    assert main(["--resume", str(folder), *more]) == 0
    assert load_bundle(finished / "bundle").name == "digits"
    bundle = load_bundle(folder / "bundle")
    assert bundle.name == "mine"
    assert bundle.provenance["epochs"] == bundle.provenance["trained_with"]["recipe"]["epochs"] == 3
    (before,) = bundle.provenance["earlier_processes"]
    assert before["recipe"]["epochs"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["sampler=shift_direct"], "no sampler 'shift_direct'"),
        (["sampler=shift", "sampler_options.archs=[{}]"], "does not keep to sampler_options.archs"),
    ],
)
def test_a_sampler_that_is_not_there_is_refused_before_anything_is_made(
    tmp_path, capsys, monkeypatch, changes, said
):
    monkeypatch.setattr(trainer.run, "read_splits", lambda _: pytest.fail("data were read"))
    assert main([*settings(*changes), "--out", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert said in line
    assert "--resume" not in line
    assert not (tmp_path / "run").exists()
