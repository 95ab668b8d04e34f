"""The training program as a user runs it, on a few steps of digits."""

import json
from unittest.mock import patch

import pytest

import trainer.finish
from models.bundle.folder import load_bundle
from tests.bundles import template_of
from trainer.finish import undominated
from trainer.run import main

SHORT = ["epochs=2", "generator.pretrain_steps=5", "evaluate_every=1", "answer_budgets=6"]
SHORT += ["threads=1", "evaluation_budgets=3", "shift_every=4", "calibration_batches=2"]
SHORT += ["batch_size=256"]


def settings(*more):
    return [part for setting in (*SHORT, *more) for part in ("--set", setting)]


def exported(space):
    """What export_template answers, which takes seconds and is done once in a session."""
    return template_of(space.name, space.num_classes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with patch.object(trainer.finish, "export_template", exported):
        assert main([*settings(), "--out", str(folder), "--json"]) == 0
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
    candidates = [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    accuracy = {"a": 0.5, "b": 0.8, "c": 0.7, "d": 0.797}
    kept = undominated(candidates, accuracy, 0.005)
    assert kept == [(1, "a"), (2, "b"), (4, "d")]
