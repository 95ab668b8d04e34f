"""Changing a recipe from the command line, and keeping it beside the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import get_args, get_type_hints

from trainer.log import Record
from trainer.recipe import Recipe
from trainer.recipes import RECIPES


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``. Raises ValueError naming those there are."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no recipe {name!r}; {hint}there are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Apply ``key=value`` settings; a dot goes into a part: ``optimizer.learning_rate=0.05``.

    Values are JSON, or a bare word. Raises ValueError for an unknown key (naming the nearest), a
    value of the wrong type, and whatever the recipe itself refuses.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} has no value; write key=value, like epochs=10")
        changed = _replace(recipe, key.split("."), text, key)
        assert isinstance(changed, Recipe)
        recipe = changed
    return recipe


def recipe_to_json(recipe: Recipe) -> Record:
    """The recipe as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def recipe_from_json(document: Mapping[str, object]) -> Recipe:
    """The reverse. Raises ValueError for a field that this version does not know."""
    recipe = _build(Recipe, document, "")
    assert isinstance(recipe, Recipe)
    return recipe


def _keys(part: object, prefix: str = "") -> list[str]:
    assert dataclasses.is_dataclass(part)
    keys: list[str] = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            keys += _keys(value, f"{prefix}{field.name}.")
        else:
            keys.append(f"{prefix}{field.name}")
    return keys


def _replace(part: object, path: list[str], text: str, key: str) -> object:
    assert dataclasses.is_dataclass(part)
    assert not isinstance(part, type)
    names = {field.name for field in dataclasses.fields(part)}
    value = getattr(part, path[0]) if path[0] in names else None
    is_part = dataclasses.is_dataclass(value)
    if path[0] not in names or (len(path) > 1) != is_part:
        keys = _keys(get_recipe("digits"))
        near = difflib.get_close_matches(key, keys, n=3, cutoff=0.4)
        near += [k for k in keys if k.rpartition(".")[2] == key and k not in near]
        raise ValueError(f"no setting {key!r}; nearest: {', '.join(near or keys)}")
    if is_part:
        return dataclasses.replace(part, **{path[0]: _replace(value, path[1:], text, key)})
    hint = get_type_hints(type(part))[path[0]]
    return dataclasses.replace(part, **{path[0]: _parse(text, hint, key)})


def _parse(text: str, hint: object, key: str) -> object:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = {"True": True, "False": False, "None": None, "none": None}.get(text, text)
    if isinstance(value, list):
        value = tuple(value)
    options = get_args(hint)
    literals = [o for o in options if isinstance(o, str)]
    for option in options:  # Literal[...] | None
        literals += [o for o in get_args(option) if isinstance(o, str)]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise ValueError(f"{key} takes {hint.__name__}, not {text!r}")
    if literals and value is not None and value not in literals:
        raise ValueError(f"{key} is one of {', '.join(literals)}, not {text!r}")
    if hint == tuple[float, float, float] and not (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(v, int | float) for v in value)
    ):
        raise ValueError(f"{key} takes three numbers like [0.5,0.5,0.5], not {text!r}")
    return value


def _build(cls: type, document: Mapping[str, object], prefix: str) -> object:
    hints = get_type_hints(cls)
    values: dict[str, object] = {}
    for name, value in document.items():
        if name not in hints:
            raise ValueError(f"recipe.json: no setting {prefix}{name}; this version has none such")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            assert isinstance(value, dict)
            value = _build(hint, value, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return cls(**values)
