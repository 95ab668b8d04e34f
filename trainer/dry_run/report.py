"""What a dry run tells, as a table for people and as plain values for programs."""

from __future__ import annotations

import json
import sys

from trainer.dry_run.measure import Cost, DryRun, Trial, dry_run
from trainer.engine.provenance import provenance
from trainer.recipes.recipe import Recipe
from trainer.report.words import format_duration, format_flops

EXAMPLE_PROCESSES = 8
"""The paper's number of GPUs."""


def print_dry_run(recipe: Recipe, images: int | None, *, as_json: bool) -> int:
    """The command: a table on stderr, with ``as_json`` one line on stdout too. Exit status 0.

    Raises ValueError as ``dry_run`` does.
    """
    result = dry_run(recipe, images)
    print(dry_run_table(result), file=sys.stderr)
    if as_json:
        print(json.dumps(dry_run_to_json(result)))
    return 0


def dry_run_to_json(result: DryRun) -> dict[str, object]:
    """Sizes in bytes, times in seconds, FLOPs in multiply-adds."""
    recipe, space, plan, trial = result.recipe, result.space, result.plan, result.trial
    memory = result.memory
    known = provenance()
    costs = {"masked": trial.masked, "sliced": trial.sliced, "update": trial.update}
    return {
        "recipe": recipe.name,
        "space": space.name,
        "data": recipe.data,
        "sampler": recipe.sampler,
        "resolution": recipe.resolution,
        "precision": recipe.precision,
        "device": result.device,
        "recipe_device": recipe.device,
        "threads": result.threads,
        "machine": known["machine"],
        "torch": known["torch"],
        "decisions": len(space.decisions),
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
            name: None
            if cost is None
            else {
                "seconds": cost.seconds / trial.images,
                "activation_bytes": cost.image_bytes,
                "fixed_bytes": cost.fixed_bytes,
            }
            for name, cost in costs.items()
        },
        "peak_bytes": trial.peak_bytes,
        "batch_memory": {
            "parameter_bytes": memory.parameters,
            "gradient_bytes": memory.gradients,
            "optimizer_bytes": memory.optimizer,
            "before_bytes": memory.before,
            "average_bytes": memory.average,
            "copy_bytes": memory.copies,
            "activation_bytes": memory.activations,
            "total_bytes": memory.fixed + memory.activations,
        },
        "epoch_s": result.epoch_s,
        "total_s": result.epoch_s * recipe.epochs,
        "training_flops": result.training_flops,
    }


def dry_run_table(result: DryRun) -> str:
    """A few dozen lines: what the recipe is, what was measured, what follows from it."""
    recipe, space, plan, trial = result.recipe, result.space, result.plan, result.trial
    memory, batch = result.memory, recipe.batch_size
    each = memory.activations // EXAMPLE_PROCESSES
    why_here = "" if result.device == recipe.device else f" (the recipe's {recipe.device} is not)"
    rows = [
        ("recipe", f"{recipe.name}: {space.name} on {recipe.data}, {recipe.resolution} pixels"),
        ("FLOPs", f"{format_flops(space.min_flops)} to {format_flops(space.max_flops)}"),
        (
            "parameters",
            f"{space.params(space.smallest):,} to {space.params(space.largest):,}",
        ),
        ("sampler", f"{recipe.sampler}, {_groups(result)}"),
        (
            "images",
            f"{plan.train_images:,} train, {plan.held_out_images:,} are held out; "
            f"{plan.classes:,} classes",
        ),
        (
            "optimizer",
            f"{recipe.optimizer.name}, learning rate {recipe.optimizer.learning_rate:g}, "
            f"weight decay {recipe.optimizer.weight_decay:g}, {recipe.precision}",
        ),
        (
            "steps",
            f"{plan.epoch_steps:,} an epoch, {plan.total_steps:,} in {recipe.epochs} epochs of "
            f"batch {batch:,}; {plan.masked_steps:,} masked, the rest sliced",
        ),
        (
            "distribution",
            f"uniform for {plan.warm_up_steps:,} steps, then {plan.updates:,} updates"
            if trial.update is not None
            else "does not learn",
        ),
        ("", ""),
        (
            "tried here",
            f"{trial.images} images at once on {result.device}{why_here}, threads: "
            f"{result.threads}; a batch of {batch:,} is {batch / trial.images:.4g} times that",
        ),
        ("augmentation", f"{_s(trial.prepare_s / trial.images)} an image"),
        ("masked step", f"{_cost(trial.masked, trial)}, loss {trial.masked_loss:.3f}"),
        (
            "sliced step",
            f"{_cost(trial.sliced, trial)}, loss {trial.sliced_loss:.3f}, "
            f"{format_flops(trial.sliced_flops)}",
        ),
        ("update of B", "none" if trial.update is None else _cost(trial.update, trial)),
        ("peak memory", f"{_bytes(trial.peak_bytes)} in this process"),
        ("", ""),
        ("memory", f"estimated for a batch of {batch:,}"),
        ("  weights", f"{_bytes(memory.parameters)}, as much again for gradients"),
        ("  optimizer", _bytes(memory.optimizer)),
        ("  w of t-1", _bytes(memory.before)),
        ("  average", _bytes(memory.average) if recipe.ema else "none"),
        ("  copies", f"{_bytes(memory.copies)}, masked or in another precision"),
        ("  activations", f"{_bytes(memory.activations)}, the most of the three above"),
        (
            "  in all",
            f"{_bytes(memory.fixed + memory.activations)}; with {EXAMPLE_PROCESSES} processes "
            f"{_bytes(memory.fixed + each)} each; libraries and images come on top",
        ),
        (
            "time",
            f"estimated on this machine: {format_duration(result.epoch_s)} an epoch, "
            f"{result.epoch_s * recipe.epochs / 86400:,.2f} days in all",
        ),
        (
            "training",
            f"{result.training_flops:.3g} multiply-adds in all, a backward pass as two forward",
        ),
    ]
    return "\n".join(f"{name:14}{text}".rstrip() for name, text in rows)


def _groups(result: DryRun) -> str:
    groups = result.groups
    if not groups:
        return "no groups"
    step = (groups[-1] - groups[0]) / max(len(groups) - 1, 1)
    shown = [format_flops(group) for group in groups]
    if len(shown) > 8:
        shown = [*shown[:3], "...", *shown[-2:]]
    return f"{len(groups)} groups of {format_flops(step)} up to {', '.join(shown)}"


def _cost(cost: Cost, trial: Trial) -> str:
    images = trial.images
    return f"{_s(cost.seconds / images)} and {_bytes(cost.image_bytes)} an image"


def _s(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
