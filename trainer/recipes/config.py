"""Changing a recipe from the command line, reading one from a file, and listing its settings."""

from __future__ import annotations

import difflib
import importlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.recipes import FITTED, RECIPES
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import in_words, key_of

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
"""Of a number, by its name in a JSON schema."""


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``. Raises ValueError naming those there are."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no recipe {name!r}; {hint}there are: {', '.join(RECIPES)}; or name a .json file"
        )
    module, _, function = RECIPES[name].partition(":")
    return getattr(importlib.import_module(module), function)()


def fitted(name: str, recipe: Recipe, counts: Sequence[int], spare: int) -> Recipe:
    """A recipe that looks at the data first, for this data (``trainer.recipes.FITTED``).

    Raises ValueError for too few images.
    """
    module, _, function = FITTED[name].partition(":")
    return getattr(importlib.import_module(module), function)(recipe, counts, spare)


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
        raise ValueError(f"{path} is not JSON ({error}); restore it, or name another") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a recipe; give settings by name, as a run's recipe.json")
    try:
        return recipe_from_json(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def recipe_from_json(document: Mapping[str, object]) -> Recipe:
    """A recipe from JSON values. Raises ValueError, in one line, for the first that is wrong."""
    try:
        return Recipe.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise ValueError(_in_words(error)) from None


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Apply ``key=value`` settings; a dot goes into a part: ``optimizer.learning_rate=0.05``.

    Values are JSON, or a bare word. Raises ValueError, in one line, for an unknown key (naming the
    nearest) and for a value that the recipe does not allow.
    """
    document = recipe.model_dump(mode="json")
    schemas = _schemas()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} has no value; write key=value, like epochs=10")
        if key not in schemas:
            raise ValueError(_unknown(key))
        part = document
        *path, name = key.split(".")
        for step in path:
            part = part[step]
        is_text = schemas[key].get("type") == "string" and "enum" not in schemas[key]
        part[name] = text if is_text else _parsed(text)
    return recipe_from_json(document)


def setting_keys() -> list[str]:
    """What ``--set`` takes: ``epochs``, ``optimizer.learning_rate``, ..."""
    return list(_schemas())


def listing(recipe: Recipe) -> str:
    """Every setting with its value in this recipe, its default, what it takes and its meaning."""
    lines: list[str] = []
    for key, schema in _schemas().items():
        value = json.dumps(value_of(recipe, key))
        default = f", default {json.dumps(schema['default'])}" if "default" in schema else ""
        lines.append(f"{key} = {value}    ({_takes(schema)}{default})")
        meaning = " ".join(schema["description"].split())
        lines += textwrap.wrap(meaning, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def value_of(recipe: Recipe, key: str) -> Any:
    """Of a setting, by its key."""
    value: object = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of every setting, by its key."""
    document = Recipe.model_json_schema()
    found: dict[str, dict[str, Any]] = {}
    for name, schema in document["properties"].items():
        _, _, part = schema.get("$ref", "").rpartition("/")
        if part:
            parts = document["$defs"][part]["properties"]
            found |= {f"{name}.{key}": its_schema for key, its_schema in parts.items()}
        else:
            found[name] = schema
    return found


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None, "none": None}.get(text, text)


def _unknown(key: str) -> str:
    keys = setting_keys()
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.4)
    same = [k for k in keys if key in (last := k.rpartition(".")[2], _initials(last))]
    near = list(dict.fromkeys([*same, *near]))
    known = f"nearest: {', '.join(near)}" if near else "--settings lists those there are"
    return f"no setting {key!r}; {known}"


def _initials(name: str) -> str:
    """As people shorten it: lr of learning_rate."""
    return "".join(word[0] for word in name.split("_"))


def _in_words(error: ValidationError) -> str:
    """The first mistake, in one line: a name that does not exist before any other."""
    for mistake in error.errors(include_url=False):
        if mistake["type"] == "extra_forbidden":
            return _unknown(key_of(mistake["loc"]))
    return in_words(error)


def _takes(schema: Mapping[str, Any]) -> str:
    """The values that a setting takes, in short."""
    kinds = [kind.get("type") for kind in schema.get("anyOf", [schema])]
    words = [word for kind in schema.get("anyOf", [schema]) for word in kind.get("enum", ())]
    if words:
        return ", ".join([*words, *(["none"] if "null" in kinds else [])])
    bounds = [f"{sign} {schema[name]:g}" for name, sign in BOUNDS.items() if name in schema]
    return " ".join([kinds[0], " and ".join(bounds)]).strip()
