"""Recipes on the command line and in a run's folder: what fits, and what is refused in one line."""

import dataclasses
import json
import re

import pytest

from trainer.config import (
    get_recipe,
    recipe_from_json,
    recipe_to_json,
    setting_keys,
    with_settings,
)
from trainer.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_own_name_and_survives_json(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_can_be_set_to_what_it_is(name):
    recipe = get_recipe(name)
    for key in setting_keys(recipe):
        value: object = recipe
        for part in key.split("."):
            value = getattr(value, part)
        text = value if isinstance(value, str) else json.dumps(value)
        assert with_settings(recipe, [f"{key}={text}"]) == recipe, key


def test_settings_change_what_they_name_and_nothing_else():
    recipe = get_recipe("digits")
    changed = with_settings(recipe, ["optimizer.learning_rate=1", "mean=[0.1,0.2,0.3]"])
    assert changed.optimizer == dataclasses.replace(recipe.optimizer, learning_rate=1.0)
    assert type(changed.optimizer.learning_rate) is float
    assert changed.mean == (0.1, 0.2, 0.3)
    assert dataclasses.replace(changed, optimizer=recipe.optimizer, mean=recipe.mean) == recipe


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("epoch=1", "no setting 'epoch'; nearest: epochs"),
        ("learning_rate=1", "optimizer.learning_rate"),
        ("optimizer=sgd", "nearest: optimizer.name"),
        ("mean.red=1", "no setting 'mean.red'"),
        ("qqqqqq=1", "there are: name, space"),
        ("epochs", "write key=value"),
        ("epochs=3.5", "epochs takes an integer, not '3.5'"),
        ("optimizer.learning_rate=fast", "takes a number, not 'fast'"),
        ("optimizer.name=adam", "takes one of sgd, adamw, not 'adam'"),
        ("augment.flip=1", "takes true or false, not '1'"),
        ("augment.policy=rotate", "or none, not 'rotate'"),
        ("mean=[0.5,0.5]", "takes 3 values like [0.5, 0.5, 0.5]"),
        ("epochs=0", "epochs is 0; it takes at least 1"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(setting, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        with_settings(get_recipe("digits"), [setting])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"epocs": 3}, "no setting epocs"),
        ({"epochs": "many"}, "recipe.json: epochs takes an integer, not 'many'"),
        ({"optimizer": 3}, "optimizer takes settings by name"),
        ({"optimizer": {"name": "lion"}}, "optimizer.name takes one of sgd, adamw"),
    ],
)
def test_a_broken_recipe_file_is_refused_by_the_name_of_its_field(change, expected):
    document = recipe_to_json(get_recipe("digits")) | change
    with pytest.raises(ValueError, match=expected):
        recipe_from_json(document)


def test_a_recipe_file_that_lacks_a_field_is_refused():
    document = recipe_to_json(get_recipe("digits"))
    del document["space"]
    with pytest.raises(ValueError, match=r"recipe\.json: space is missing"):
        recipe_from_json(document)
