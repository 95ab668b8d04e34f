"""What a dry run tells people and programs: facts with their units in their names."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

from trainer.dry_run.measure import DryRun, dry_run
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
    recipe, space, plan, trial = result.recipe, result.space, result.plan, result.trial
    known = provenance()
    costs = {"masked": trial.masked, "sliced": trial.sliced, "update": trial.update}
    return {
        "recipe": recipe.name,
        "space": space.name,
        "data": recipe.data,
        "sampler": recipe.sampler,
        "resolution": recipe.resolution,
        "precision": recipe.precision,
        "recipe_device": recipe.device,
        "device": result.device,
        "threads": result.threads,
        "machine": known["machine"],
        "torch": known["torch"],
        "min_flops": space.min_flops,
        "max_flops": space.max_flops,
        "min_params": space.params(space.smallest),
        "max_params": space.params(space.largest),
        "groups": list(result.groups),
        "train_images": plan.train_images,
        "held_out_images": plan.held_out_images,
        "classes": plan.classes,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "steps_per_epoch": plan.epoch_steps,
        "steps": plan.total_steps,
        "masked_steps": plan.masked_steps,
        "warm_up_steps": plan.warm_up_steps,
        "updates": plan.updates,
        "images_at_once": trial.images,
        "masked_loss": trial.masked_loss,
        "sliced_loss": trial.sliced_loss,
        "sliced_flops": trial.sliced_flops,
        "prepare_image_s": trial.prepare_s / trial.images,
        "image_cost": {
            name: {
                "step_s": cost.seconds / trial.images,
                "activation_bytes": cost.image_bytes,
                "fixed_bytes": cost.fixed_bytes,
            }
            for name, cost in costs.items()
            if cost is not None
        },
        "peak_bytes": trial.peak_bytes,
        "batch_memory": {**result.memory.by_name(), "total_bytes": result.memory.total},
        "epoch_s": result.epoch_s,
        "total_s": result.epoch_s * recipe.epochs,
        "training_flops": result.training_flops,
    }


def _lines(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{name} " if not prefix else f"{prefix}{name} ")
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
