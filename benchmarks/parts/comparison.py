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
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.parts.step_costs import Costs, Variants, step_costs
from benchmarks.parts.timing import machine
from trainer.recipes.config import get_recipe, with_settings
from trainer.recipes.recipe import Recipe

Table = dict[str, list[tuple[float, float, float, float]]]
"""Name of a variant -> for each seed accuracy in percent: mean over the budgets of the recipe's
table on held-out images, by which one decides; on test images that mean, the smallest budget's and
the largest's."""

COSTS_NAME = "costs.json"


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


def run_all(options: argparse.Namespace, variants: Variants, epochs: dict[str, int]) -> list[Path]:
    """Train what is not finished yet; the runs' folders. Raises ValueError if a run fails."""
    folders = []
    for seed in options.seeds:
        for name, count in epochs.items():
            folder = options.out / f"{name}-{seed}"
            folders.append(folder)
            if (folder / "frontier.json").is_file():
                continue
            command = [sys.executable, "-m", "trainer.run"]
            if (folder / "recipe.json").is_file():
                command += ["--resume", str(folder)]
            else:
                command += ["--recipe", options.recipe, "--out", str(folder)]
                own = [*options.set, *variants[name], f"epochs={count}", f"seed={seed}"]
                command += [part for setting in own for part in ("--set", setting)]
                command += ["--data", options.data] if options.data else []
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                raise ValueError(f"{folder}: the run failed; mend it, or remove it and try again")
    return folders


def accuracies(options: argparse.Namespace, variants: Variants) -> Table:
    """What the runs reached."""
    table: Table = {}
    for name in variants:
        for seed in options.seeds:
            rows = json.loads((options.out / f"{name}-{seed}" / "frontier.json").read_text())
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
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    recipe = with_settings(get_recipe(options.recipe), options.set)
    if options.data:
        recipe = recipe.replace(data=options.data)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / COSTS_NAME
    if not kept.is_file():
        costs = costs_of(recipe, variants)
        epochs = epochs_of_equal_time(recipe.epochs, costs)
        document = {
            "step_ms": costs,
            "epochs": epochs,
            "machine": {**machine(), "torch": torch.__version__},
        }
        kept.write_text(json.dumps(document, indent=1) + "\n")
    document = json.loads(kept.read_text())
    if set(document["epochs"]) != set(variants):
        raise ValueError(
            f"{kept} is of {', '.join(document['epochs'])}; choose another --out, or remove it"
        )
    for name, own in document["step_ms"].items():
        print(
            f"{name:16} {statistics.median(own):7.2f} ms of processor time a step "
            f"({min(own):.2f} to {max(own):.2f})  {document['epochs'][name]:4} epochs",
            file=sys.stderr,
        )
    folders = run_all(options, variants, document["epochs"])
    return {"runs": [str(f) for f in folders], **document}
