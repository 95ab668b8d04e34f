"""Recipes on the command line and in a run's folder: what fits, and what is refused in one line."""

import ast
import itertools
import json
import re
from pathlib import Path

import pytest

from trainer.dry_run.plan import KNOWN_DATA, plan_of
from trainer.engine.optim import schedule_at
from trainer.job import FIXED, build_parser, find_job
from trainer.recipes import RECIPES
from trainer.recipes.config import (
    find_recipe,
    get_recipe,
    recipe_from_json,
    setting_keys,
    value_of,
    with_settings,
)
from trainer.run import main

ROOT = Path(__file__).resolve().parents[3]


DIGITS = get_recipe("digits").model_dump(mode="json")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_own_name_and_survives_json(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe_from_json(json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_can_be_set_to_what_it_is(name):
    recipe = get_recipe(name)
    for key in setting_keys():
        value = value_of(recipe, key)
        text = value if isinstance(value, str) else json.dumps(value)
        assert with_settings(recipe, [f"{key}={text}"]) == recipe, key


def test_settings_change_what_they_name_and_nothing_else():
    recipe = get_recipe("digits")
    changed = with_settings(recipe, ["optimizer.learning_rate=1", "mean=[0.1,0.2,0.3]"])
    assert changed.optimizer == recipe.optimizer.replace(learning_rate=1.0)
    assert type(changed.optimizer.learning_rate) is float
    assert changed.mean == (0.1, 0.2, 0.3)
    assert changed.replace(optimizer=recipe.optimizer, mean=recipe.mean) == recipe


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("epoch=1", "no setting 'epoch'; nearest: epochs"),
        ("learning_rate=1", "optimizer.learning_rate"),
        ("optimizer=sgd", "nearest: optimizer.name"),
        ("mean.red=1", "no setting 'mean.red'"),
        ("qqqqqq=1", "no setting 'qqqqqq'; --settings lists those there are"),
        ("epochs", "write key=value"),
        ("epochs=3.5", "epochs is 3.5; it should be a valid integer"),
        ("optimizer.learning_rate=fast", 'is "fast"; it should be a valid number'),
        ("optimizer.name=adam", "it should be 'sgd' or 'adamw'"),
        ("augment.flip=1", "is 1; it should be a valid boolean"),
        ("augment.policy=rotate", "'trivialaugment' or 'augmix'"),
        ("mean=[0.5,0.5]", "mean[2] is missing"),
        ("epochs=0", "epochs is 0; it should be greater than or equal to 1"),
        (
            "evaluation_budgets=1",
            "evaluation_budgets is 1; it should be greater than or equal to 2",
        ),
        (
            "generator.served_share=3",
            "served_share is 3; it should be less than or equal to 1",
        ),
        ("checkpoint_every_s=NaN", "checkpoint_every_s is NaN; it should be a finite number"),
        (
            "optimizer.learning_rate=Infinity",
            "is Infinity; it should be a finite number",
        ),
        ("std=[0.2,0,0.2]", "std[1] is 0; it should be greater than 0"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(setting, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        with_settings(get_recipe("digits"), [setting])
    assert "\n" not in str(error.value)


def test_a_change_in_code_is_refused_as_a_setting_is():
    for change, expected in (
        ({"epochs": 0}, "epochs is 0; it should be greater than or equal to 1"),
        ({"compute": 1.0, "training_hours": 1.0}, "compute and training_hours both say how long"),
    ):
        with pytest.raises(ValueError, match=expected) as error:
            get_recipe("digits").replace(**change)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["compute=1e12", "training_hours=0.5", "epochs=3"])
def test_hours_are_the_only_length_of_a_run(setting, tmp_path):
    options = ["--hours", "0.01", "--set", setting, "--out", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"^--hours 0\.01 and \w+=\S+ both say how long a run is"):
        find_job(build_parser("").parse_args(options))


NEVER_0 = {
    *("resolution", "epochs", "batch_size", "held_out_share", "evaluation_budgets"),
    *("calibration_batches", "answer_budgets", "accumulate", "augment.repeats"),
    *("sampler_options.groups", "sampler_options.groups_per_update", "generator.resource_batch"),
    *("generator.masked_every", "generator.first_temperature", "generator.last_temperature"),
    *("distillation.temperature", "crop_ratio"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_that_no_run_can_use_are_refused_and_all_others_make_a_plan(name, monkeypatch):
    recipe = get_recipe(name)
    if recipe.data not in KNOWN_DATA:
        monkeypatch.setitem(KNOWN_DATA, recipe.data, (1437, 10))
    numbers = [key for key in setting_keys() if type(value_of(recipe, key)) in (int, float)]
    assert set(numbers) > NEVER_0
    for key, number in itertools.product(numbers, (0, -1)):
        if (number < 0 and key != "data_workers") or key in NEVER_0:
            given = re.escape(f"{key} is {number}; it should be ")
            with pytest.raises(ValueError, match=given) as error:
                with_settings(recipe, [f"{key}={number}"])
            assert "\n" not in str(error.value)
            continue
        changed = with_settings(recipe, [f"{key}={number}"])
        plan = plan_of(changed)
        assert plan.steps >= plan.masked_steps > 0
        for step in (0, plan.steps - 1):
            assert schedule_at(step, plan.steps, changed).temperature > 0


def test_a_plan_refuses_to_hold_out_all_images():
    recipe = with_settings(get_recipe("cifar10-cnn"), ["held_out_images=50000"])
    with pytest.raises(ValueError, match="held_out_images is 50000, of 50000 training images"):
        plan_of(recipe)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"epocs": 3}, "no setting 'epocs'"),
        ({"epochs": "many"}, '^epochs is "many"; it should be a valid integer'),
        ({"optimizer": 3}, "optimizer is 3; it should be an object"),
        (
            {"optimizer": {"name": "lion"}},
            "it should be 'sgd' or 'adamw'",
        ),
    ],
)
def test_a_broken_recipe_file_is_refused_by_the_name_of_its_field(change, expected):
    document = DIGITS | change
    with pytest.raises(ValueError, match=expected):
        recipe_from_json(document)


def test_a_recipe_file_that_lacks_a_field_is_refused():
    document = {name: value for name, value in DIGITS.items() if name != "space"}
    with pytest.raises(ValueError, match=r"^space is missing"):
        recipe_from_json(document)


def test_the_recipe_of_the_bundle_in_the_repository_trained_it_but_for_what_its_page_names():
    recipe = get_recipe("cifar10-cnn").replace(bundle_name="", epochs=142)
    first = find_recipe(str(ROOT / "docs/runs/cifar10-cnn-first/recipe.json"))
    assert first == recipe.replace(sampler="shift-direct")
    named = [
        "sampler=uniform-budget",
        "sampler_options.tilt=[0,0]",
        "start=models/zoo/cifar10-cnn",
        "epochs=60",
        "distillation.teacher=models/zoo/cifar10-cnn",
        "distillation.weight=0.5",
        "distillation.temperature=2",
        "optimizer.label_smoothing=0",
        "optimizer.learning_rate=0.1",
        "generator.masked_every=16",
        "augment.alternate_flips=true",
    ]
    second = find_recipe(str(ROOT / "docs/runs/cifar10-cnn/recipe.json"))
    assert second == with_settings(recipe, named)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a recipe"),
        ('{"epocs": 3}', "no setting 'epocs'"),
        (None, "No such file or directory; name another"),
    ],
)
def test_a_recipe_file_that_cannot_be_used_is_named(tmp_path, content, expected):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=rf"{file}.*{expected}") as error:
        find_recipe(str(file))
    assert "\n" not in str(error.value)


def options(*arguments):
    return build_parser("").parse_args(arguments)


def test_a_job_starts_from_a_file_and_settings_come_on_top(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(DIGITS | {"epochs": 3, "seed": 4}))
    out = ["--out", str(tmp_path / "run")]
    job = find_job(options("--recipe", str(file), "--set", "seed=5", *out))
    assert job.recipe == get_recipe("digits").replace(epochs=3, seed=5)
    assert find_job(options(*out)).recipe == get_recipe("digits")


def test_the_batch_of_a_dry_run_starts_no_training():
    with pytest.raises(ValueError, match="--dry-run-batch 4 is of a dry run: add --dry-run"):
        find_job(options("--dry-run-batch", "4"))


@pytest.mark.parametrize("more", [["--recipe", "digits"], ["--out", "elsewhere"]])
def test_what_a_resumed_run_has_already_is_not_ignored(tmp_path, more):
    (tmp_path / "recipe.json").write_text(json.dumps(DIGITS))
    assert find_job(options("--resume", str(tmp_path))).recipe == get_recipe("digits")
    with pytest.raises(ValueError, match=f"leave out {' '.join(more)} .*leave out --resume"):
        find_job(options("--resume", str(tmp_path), *more))


@pytest.mark.parametrize("fixed", sorted({*FIXED, "held_out_images"}))
def test_what_a_checkpoint_is_made_of_is_kept(tmp_path, fixed):
    (tmp_path / "recipe.json").write_text(json.dumps(DIGITS))
    (tmp_path / "checkpoint.pt").touch()
    other = {
        "space": "nano-vit",
        "sampler": "sandwich",
        "optimizer.name": "adamw",
        "held_out_share": "0.2",
        "mean": "[0.5,0.5,0.5]",
        "std": "[0.5,0.5,0.5]",
        "sampler_options.archs": '[{"depth":[1]}]',
        "statistics": "start",
    }.get(fixed, "13")
    with pytest.raises(ValueError, match=f"keeps its {fixed};"):
        find_job(options("--resume", str(tmp_path), "--set", f"{fixed}={other}"))


def texts_of(file):
    """Strings of a program but for its docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    told = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    found = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return [node.value for node in found if isinstance(node.value, str)]


def test_errors_name_settings_that_exist():
    """In what the trainer says, all that looks like one: with its part, or after set."""
    keys = setting_keys()
    parts = {key.partition(".")[0] for key in keys if "." in key}
    dotted = rf"\b(?:sampler|{'|'.join(parts)})\.[a-z_]+"
    found = set()
    for file in (ROOT / "trainer").rglob("*.py"):
        for text in texts_of(file):
            found |= set(re.findall(dotted, text)) | set(re.findall(r"\bset ([a-z_.]+)=", text))
    assert {"optimizer.clip_norm", "device"} <= found
    assert found <= set(keys)


def test_the_listing_says_of_every_setting_what_it_takes_and_means(capsys):
    assert main(["--recipe", "vit-tiny", "--settings", "--set", "epochs=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line.partition(" = ")[0] for line in lines if not line.startswith(" ")]
    assert keys == setting_keys()
    assert "epochs = 3    (integer >= 1)" in lines
    assert 'optimizer.name = "adamw"    (sgd, adamw, default "sgd")' in lines
    meanings = [len(line.strip()) for line in lines if line.startswith(" ")]
    assert len(meanings) >= len(keys)
    assert min(meanings) > 0
