"""Variants of a recipe at equal training time, over several seeds.

First the processor time of a step is measured per variant, in turn, in one process. The first
variant trains for the recipe's epochs, every other for as many as cost the same time. Runs take
turns too (all variants of a seed, then the next seed). Finished runs are kept, so the command can
be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.parts.kept import refuse_other
from benchmarks.parts.step_costs import Costs, Variants, step_costs
from benchmarks.parts.timing import machine
from models.command import command_parser
from trainer.data.reading import full_path
from trainer.engine.disk import write_whole
from trainer.job import RECIPE_NAME, asked_recipe
from trainer.job import build_parser as run_parser
from trainer.recipes.config import (
    read_recipe,
    recipe_from_json,
    setting_keys,
    value_of,
    with_settings,
)
from trainer.recipes.recipe import Recipe

Table = dict[str, list[tuple[float, float, float, float]]]
"""Name of a variant -> for each seed accuracy in percent: mean over the budgets of the recipe's
table on held-out images, by which one decides; on test images that mean, the smallest budget's and
the largest's."""

COSTS_NAME, FRONTIER_NAME = "costs.json", "frontier.json"


def epochs_of_equal_time(epochs: int, costs: Costs) -> dict[str, int]:
    """Epochs per variant that take as long as `epochs` of the first one; at least 1.

    The ratio is the median over rounds of ratios within a round.
    """
    first = next(iter(costs.values()))
    return {
        name: max(
            1, round(epochs * statistics.median(a / b for a, b in zip(first, own, strict=True)))
        )
        for name, own in costs.items()
    }


def recipe_of(options: argparse.Namespace, variants: Variants) -> Recipe:
    """What the variants change, as ``trainer.run`` reads it.

    Raises ValueError for settings that would do nothing here, and as ``asked_recipe`` does.
    """
    of_variants = [("--variant", settings) for settings in variants.values()]
    for option, settings in [("--set", options.set), *of_variants]:
        for setting in settings:
            key = setting.partition("=")[0]
            if key == "seed":
                why = "seeds are --seeds"
            elif key in ("compute", "training_hours", "most_epochs"):
                why = "runs are as long as epochs say"
            elif key == "epochs" and option == "--variant":
                why = "epochs follow from what a step costs and from --set epochs=N"
            elif key == "data" and options.data:
                why = f"the data is --data {options.data}"
            else:
                continue
            raise ValueError(f"{option} {setting} does nothing here: {why}; leave it out")
    command = ["--recipe", options.recipe, *_set(options.set)]
    command += ["--data", options.data] if options.data else []
    recipe = asked_recipe(run_parser("").parse_args(command))
    return recipe.replace(data=options.data or recipe.data)


def _set(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _settings(recipe: Recipe) -> dict[str, object]:
    return {key: value_of(recipe, key) for key in setting_keys()}


def run_all(
    options: argparse.Namespace,
    variants: Variants,
    recipes: Mapping[str, Recipe],
    epochs: Mapping[str, int],
) -> list[Path]:
    """Train what is not finished yet; the runs' folders.

    Raises ValueError if a run fails, and before the first one for a folder of another run.
    """
    runs = {
        options.out / f"{name}-{seed}": (name, [f"epochs={count}", f"seed={seed}"])
        for seed in options.seeds
        for name, count in epochs.items()
    }
    for folder, (name, last) in runs.items():
        if any((folder / kept).is_file() for kept in (RECIPE_NAME, FRONTIER_NAME)):
            its = read_recipe(folder / RECIPE_NAME)
            asked = with_settings(recipes[name], last)
            refuse_other(folder, _settings(its), _settings(asked))
    for folder, (name, last) in runs.items():
        if (folder / FRONTIER_NAME).is_file():
            continue
        command = [sys.executable, "-m", "trainer.run"]
        if (folder / RECIPE_NAME).is_file():
            command += ["--resume", str(folder)]
        else:
            command += ["--recipe", options.recipe, "--out", str(folder)]
            command += _set([*options.set, *variants[name], *last])
            command += ["--data", options.data] if options.data else []
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise ValueError(f"{folder}: the run failed; mend it, or remove it and try again")
    return list(runs)


def accuracies(options: argparse.Namespace, variants: Variants) -> Table:
    """What the runs reached."""
    table: Table = {}
    for name in variants:
        for seed in options.seeds:
            rows = json.loads((options.out / f"{name}-{seed}" / FRONTIER_NAME).read_text())
            held_out = statistics.mean(100 * row["held_out_accuracy"] for row in rows)
            percents = [100 * row["test_accuracy"] for row in rows]
            reached = (held_out, statistics.mean(percents), percents[0], percents[-1])
            table.setdefault(name, []).append(reached)
    return table


def print_accuracies(options: argparse.Namespace, table: Table) -> None:
    """A line for each variant; differences are paired by seed."""
    first, width = next(iter(table)), max(len(name) for name in table)
    print(f"accuracy, %, over seeds {options.seeds}; differences to {first}, paired by seed")
    for name, runs in table.items():
        cells = []
        for place, images in enumerate(("held-out", "test")):
            means = [run[place] for run in runs]
            gains = [
                run[place] - other[place] for run, other in zip(runs, table[first], strict=True)
            ]
            cells.append(
                f"{images} {statistics.mean(means):6.2f} ({min(means):.2f} to {max(means):.2f}), "
                f"difference {statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})"
            )
        smallest, largest = (statistics.mean(run[place] for run in runs) for place in (2, 3))
        print(
            f"  {name:{width}} {'; '.join(cells)}; smallest {smallest:6.2f}, largest {largest:6.2f}"
        )


def build_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """What all comparisons of variants ask."""
    parser = command_parser(f"benchmarks.{name}", description, json=False)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", help="training images, as trainer.run reads them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    return parser


def compare(
    benchmark: str,
    options: argparse.Namespace,
    variants: Variants,
    costs_of: Callable[[Recipe, Variants], Costs] = step_costs,
) -> None:
    """Costs, runs, a table, and the line of JSON. Raises ValueError for a user's mistake."""
    result = measure(options, variants, costs_of)
    table = accuracies(options, variants)
    print_accuracies(options, table)
    print(json.dumps({"benchmark": benchmark, "accuracy": table, **result}))


def measure(
    options: argparse.Namespace,
    variants: Variants,
    costs_of: Callable[[Recipe, Variants], Costs],
) -> dict[str, object]:
    """Costs, then runs."""
    recipe = recipe_of(options, variants)
    asked = {name: with_settings(recipe, settings) for name, settings in variants.items()}
    recipes = {name: own.replace(data=full_path(own.data)) for name, own in asked.items()}
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / COSTS_NAME
    if not kept.is_file():
        costs = costs_of(recipe, variants)
        document = {
            "recipes": {name: own.model_dump(mode="json") for name, own in recipes.items()},
            "step_ms": costs,
            "epochs": epochs_of_equal_time(recipe.epochs, costs),
            "machine": {**machine(), "torch": torch.__version__},
        }
        write_whole(kept, json.dumps(document, indent=1) + "\n")
    document = json.loads(kept.read_text())
    if list(document["epochs"]) != list(variants):  # the first is what others are compared with
        raise ValueError(
            f"{kept} is of {', '.join(document['epochs'])}, in this order: name another folder "
            "(--out)"
        )
    for name, its in document.get("recipes", {}).items():  # older files have none
        refuse_other(kept, _settings(recipe_from_json(its)), _settings(recipes[name]))
    for name, own in document["step_ms"].items():
        print(
            f"{name:16} {statistics.median(own):7.2f} ms of processor time a step "
            f"({min(own):.2f} to {max(own):.2f})  {document['epochs'][name]:4} epochs",
            file=sys.stderr,
        )
    folders = run_all(options, variants, recipes, document["epochs"])
    return {"runs": [str(f) for f in folders], **document}
