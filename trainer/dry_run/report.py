"""What a dry run tells people and programs: facts with their units in their names."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch

from trainer.dry_run.measure import DryRun, dry_run, peak_bytes
from trainer.engine.provenance import provenance
from trainer.recipes.recipe import Recipe
from trainer.report.words import format_duration, format_flops


def print_dry_run(recipe: Recipe, images: int | None, *, as_json: bool) -> int:
    """The command: a table on stderr, with ``as_json`` one line on stdout too. Exit status 0.

    Raises ValueError as ``dry_run`` does.
    """
    facts = facts_of(dry_run(recipe, images))
    for name, text in _lines(facts):
        print(f"{name:34}{text}", file=sys.stderr)
    if as_json:
        print(json.dumps(facts))
    return 0


def facts_of(result: DryRun) -> dict[str, object]:
    """Sizes in bytes, times in seconds, FLOPs in multiply-adds.

    batch_memory: of a batch in one process; each of several has its share of the activations, and
    all of the rest. Libraries and images come on top.
    """
    recipe, space, trial = result.recipe, result.space, result.trial
    known = provenance()
    asked = ("space", "data", "sampler", "resolution", "precision", "epochs", "batch_size")
    return {
        "recipe": recipe.name,
        **{name: getattr(recipe, name) for name in asked},
        "recipe_device": recipe.device,
        "device": result.device,
        "threads": torch.get_num_threads(),
        "machine": known["machine"],
        "torch": known["torch"],
        "min_flops": space.min_flops,
        "max_flops": space.max_flops,
        "min_params": space.params(space.smallest),
        "max_params": space.params(space.largest),
        "groups": list(result.groups),
        **{name: value for name, value in asdict(result.plan).items() if name != "labels"},
        "images_at_once": trial.images,
        **{f"{name}_loss": loss for name, loss in trial.losses.items()},
        "sliced_flops": trial.sliced_flops,
        "prepare_image_s": trial.prepare_s / trial.images,
        "image_cost": {
            name: {
                "step_s": cost.seconds / trial.images,
                "activation_bytes": cost.image_bytes,
                "fixed_bytes": cost.fixed_bytes,
            }
            for name, cost in trial.costs.items()
        },
        "peak_bytes": peak_bytes(result.device),
        "batch_memory": {
            **{f"{name}_bytes": value for name, value in result.memory.items()},
            "total_bytes": sum(result.memory.values()),
        },
        "epoch_s": result.epoch_s,
        "total_s": result.total_s,
        "training_flops": result.training_flops,
    }


def _lines(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{name} ")
        else:
            label = f"{prefix}{name.removesuffix('_bytes').removesuffix('_s')}"
            yield label.replace("_", " "), _text(name, value)


def _text(name: str, value: object) -> str:
    """With the unit that a name ends in."""
    if isinstance(value, list):
        return f"{len(value)} groups up to {', '.join(map(format_flops, value))} FLOPs"
    if not isinstance(value, int | float):
        return str(value)
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    if name.endswith("_flops"):
        return format_flops(value)
    if name.endswith("_s"):
        return format_duration(value) if value >= 60 else f"{value:.3g} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
