"""Changing a recipe from the command line, and keeping it beside the run."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from trainer.recipes import RECIPES
from trainer.recipes.recipe import Recipe
from trainer.report.log import Record


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``. Raises ValueError naming those there are."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no recipe {name!r}; {hint}there are: {', '.join(RECIPES)}; or name a .json file"
        )
    module, _, function = RECIPES[name].partition(":")
    recipe: Recipe = getattr(importlib.import_module(module), function)()
    return recipe


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a .json file like a run's recipe.json.

    Raises ValueError as ``get_recipe`` and ``read_recipe`` do.
    """
    return read_recipe(Path(name)) if name.endswith(".json") else get_recipe(name)


def read_recipe(path: Path) -> Recipe:
    """The recipe that a file holds. Raises ValueError, naming the file and what is wrong."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; name another recipe") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); restore it, or name another") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no recipe; give settings by name, as a run's recipe.json")
    try:
        return recipe_from_json(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Apply ``key=value`` settings; a dot goes into a part: ``optimizer.learning_rate=0.05``.

    Values are JSON, or a bare word. Raises ValueError for an unknown key (naming the nearest), a
    value of the wrong type, and whatever the recipe itself refuses.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} has no value; write key=value, like epochs=10")
        keys = setting_keys(recipe)
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=3, cutoff=0.4)
            near += [k for k in keys if k.rpartition(".")[2] == key and k not in near]
            known = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(keys)}"
            raise ValueError(f"no setting {key!r}; {known}")
        changed = _replace(recipe, key.split("."), text, key)
        assert isinstance(changed, Recipe)
        recipe = changed
    return recipe


def setting_keys(part: object, prefix: str = "") -> list[str]:
    """What ``--set`` takes for this recipe: ``epochs``, ``optimizer.learning_rate``, ..."""
    assert dataclasses.is_dataclass(part)
    keys: list[str] = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            keys += setting_keys(value, f"{prefix}{field.name}.")
        else:
            keys.append(f"{prefix}{field.name}")
    return keys


def recipe_to_json(recipe: Recipe) -> Record:
    """The recipe as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def recipe_from_json(document: Mapping[str, object]) -> Recipe:
    """The reverse. Raises ValueError for a field that this version does not know."""
    recipe = _build(Recipe, document, "")
    assert isinstance(recipe, Recipe)
    return recipe


def _replace(part: object, path: list[str], text: str, key: str) -> object:
    assert dataclasses.is_dataclass(part)
    assert not isinstance(part, type)
    name, *rest = path
    if rest:
        return dataclasses.replace(part, **{name: _replace(getattr(part, name), rest, text, key)})
    return dataclasses.replace(part, **{name: _parse(text, get_type_hints(type(part))[name], key)})


def _parse(text: str, hint: object, key: str) -> object:
    if hint is str:
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = {"True": True, "False": False, "None": None, "none": None}.get(text, text)
    if isinstance(value, list):
        value = tuple(value)
    if not _fits(value, hint):
        raise ValueError(f"{key} takes {_in_words(hint)}, not {text!r}")
    wants_float = hint is float or float in get_args(hint)
    return float(value) if wants_float and type(value) is int else value


def _fits(value: object, hint: object) -> bool:
    """Whether a value is of a field's type: a plain one, a Literal, a union or a fixed tuple."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return value in options and isinstance(value, str)
    if get_origin(hint) is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(options)
            and all(_fits(v, option) for v, option in zip(value, options, strict=True))
        )
    if options:
        return any(_fits(value, option) for option in options)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _in_words(hint: object) -> str:
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(options)}"
    if get_origin(hint) is tuple:
        return f"{len(options)} values like {json.dumps([0.5] * len(options))}"
    if options:
        return " or ".join(_in_words(option) for option in options)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a word"}
    return "none" if hint is type(None) else words[hint]  # type: ignore[index]


def _build(cls: type, document: Mapping[str, object], prefix: str) -> object:
    hints = get_type_hints(cls)
    values: dict[str, object] = {}
    for name, value in document.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise ValueError(f"no setting {key}; this version has none such")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            if not isinstance(value, dict):
                raise ValueError(f"{key} takes settings by name, not {value!r}")
            values[name] = _build(hint, value, f"{key}.")
            continue
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hint):
            raise ValueError(f"{key} takes {_in_words(hint)}, not {value!r}")
        values[name] = value
    for field in dataclasses.fields(cls):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise ValueError(f"{prefix}{field.name} is missing")
    return cls(**values)
