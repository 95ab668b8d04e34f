"""Variants of a recipe: what they are made of, and a folder that goes on with its own alone."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.variants
from benchmarks.parts import comparison
from benchmarks.variants import main, named
from trainer.job import asked_recipe, build_parser
from trainer.recipes.config import read_recipe

ROW = {"held_out_accuracy": 0.5, "test_accuracy": 0.5}


@pytest.fixture
def trained(monkeypatch):
    """Runs that were trained: each is a stub that leaves what trainer.run leaves."""
    runs = []

    def run(command, **_):
        assert command[1:3] == ["-m", "trainer.run"]
        options = build_parser("").parse_args(command[3:])
        folder = options.resume or options.out
        if options.out is not None:
            folder.mkdir(parents=True)
            (folder / "recipe.json").write_text(asked_recipe(options).model_dump_json())
        if len(runs) < 3:
            (folder / "frontier.json").write_text(json.dumps([ROW]))
        runs.append(folder.name)
        return SimpleNamespace(returncode=len(runs) > 3)

    monkeypatch.setattr(subprocess, "run", run)

    def costs(recipe, variants):
        return {name: [1.0 + place] for place, name in enumerate(variants)}

    def compare(benchmark, options, variants):
        return comparison.compare(benchmark, options, variants, costs)

    monkeypatch.setattr(benchmarks.variants, "compare", compare)
    return runs


def test_a_folder_goes_on_with_its_own_variants_alone(tmp_path, trained, capsys):
    variants = ["--variant", "plain", "--variant", "both ema=0.99 drop_path=0.1"]
    seeds = ["--seeds", "0", "1"]
    arguments = ["--out", str(tmp_path), "--set", "epochs=8", *seeds, *variants]
    assert main(arguments) == 2  # the last run of four stops
    assert main(arguments) == 2
    assert trained == ["plain-0", "both-0", "plain-1", "both-1", "both-1"]
    (tmp_path / "both-1" / "frontier.json").write_text(json.dumps([ROW]))
    its = read_recipe(tmp_path / "both-1" / "recipe.json")
    assert (its.ema, its.drop_path, its.epochs, its.seed) == (0.99, 0.1, 4, 1)
    assert main(arguments) == 0
    capsys.readouterr()

    other = [*arguments[:-1], "both ema=0.5"]
    for changed, told in (
        (other, "costs.json is of drop_path 0.1, and 0.0 is asked for: name another folder"),
        ([*arguments, "--set", "epochs=9"], "is of epochs 8, and 9 is asked for"),
        ([*arguments, "--data", "elsewhere"], "is of data digits, and elsewhere is asked for"),
        ([*arguments, "--recipe", "cifar10-cnn"], "and cifar10-cnn is asked for"),
        ([*arguments[:-4], *variants[2:], *variants[:2]], "is of plain, both, in this order"),
    ):
        assert main(changed) == 2
        assert told in capsys.readouterr().err
    costs = json.loads((tmp_path / "costs.json").read_text())
    del costs["recipes"]  # as older commits wrote it
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(other) == 2
    assert "both-0 is of drop_path 0.1, and 0.0 is asked for" in capsys.readouterr().err
    assert len(trained) == 5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--variant", "ema 0.99"], "variant 'ema 0.99': '0.99' is not a setting"),
        (
            ["--variant", "a ema=0.9 epochs=9"],
            "--variant epochs=9 does nothing here: epochs follow",
        ),
        (["--variant", "seed=9"], "--variant seed=9 does nothing here: seeds are --seeds"),
        (["--variant", "a", "--set", "seed=9"], "--set seed=9 does nothing here"),
        (["--variant", "compute=9"], "--variant compute=9 does nothing here"),
        (["--variant", "data=a", "--data", "b"], "data=a does nothing here: the data is --data b"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given, told, tmp_path, trained, capsys):
    assert main(["--out", str(tmp_path / "out"), *given]) == 2
    assert told in capsys.readouterr().err
    assert not trained
    assert not Path(tmp_path / "out").exists()


def test_a_variant_is_its_settings_after_its_name():
    assert named(["plain", "ema=0.9 drop_path=0", "both ema=0.9 drop_path=0"]) == {
        "plain": [],
        "ema=0.9": ["ema=0.9", "drop_path=0"],
        "both": ["ema=0.9", "drop_path=0"],
    }
