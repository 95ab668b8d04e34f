"""The command line of ``trainer.run``: the recipe, the run's folder, and whether it goes on."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.bundle.manifest import check_name
from models.command import command_parser
from models.space.describe import read_arch
from models.space.quantity import positive
from models.spaces import get_space
from trainer.data.batch_workers import local_processes
from trainer.data.reading import cut_test, full_path, read_source
from trainer.engine.checkpoint import has_checkpoint
from trainer.engine.teacher import find_teacher
from trainer.recipes import FITTED, RECIPES
from trainer.recipes.config import find_recipe, fitted, read_recipe, value_of, with_settings
from trainer.recipes.recipe import Recipe
from trainer.samplers import build_sampler
from trainer.start.source import find_start

RECIPE_NAME = "recipe.json"
DEFAULT_RECIPE = "digits"

FIXED = (
    "space",
    "start",
    "statistics",
    "resolution",
    "batch_size",
    "held_out_share",
    "held_out_images",
    "seed",
    "mean",
    "std",
    "sampler",
    "sampler_options.groups",
    "sampler_options.archs",
    "optimizer.name",
)
"""Settings that a checkpoint is made of: what is resumed keeps them. All others may change."""


@dataclass(frozen=True)
class Job:
    """One run to do: its recipe, its folder, and whether a checkpoint there is its start."""

    recipe: Recipe
    folder: Path
    resume: bool


def build_parser(description: str) -> argparse.ArgumentParser:
    """Its options; see ``--help``."""
    parser = command_parser("trainer.run", description)
    parser.add_argument(
        "--recipe",
        metavar="NAME or FILE",
        help=f"one of: {', '.join(RECIPES)} (default: {DEFAULT_RECIPE}); or a run's recipe.json",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a recipe's setting"
    )
    parser.add_argument(
        "--settings",
        action="store_true",
        help="list the recipe's settings, each with its value, default, range and meaning",
    )
    parser.add_argument(
        "--data",
        help="training images: parquet or tar file or folder, image folder, or a data set's name "
        "(digits)",
    )
    parser.add_argument(
        "--start",
        metavar="NAME, FILE or BUNDLE",
        help="weights to begin with: efficientnet-lite0, timm:NAME, a file of such weights, or a "
        "bundle",
    )
    parser.add_argument(
        "--hours", type=positive, metavar="H", help="train as many epochs as fit into so many hours"
    )
    parser.add_argument(
        "--arch",
        metavar="FILE|JSON",
        help="train this subnet alone, as a run of its own (sampler fixed-arch)",
    )
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/RECIPE)")
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="continue the run in this folder"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="take two steps on random images, and report what a run needs",
    )
    parser.add_argument(
        "--dry-run-batch",
        type=int,
        metavar="N",
        help="batch size of the dry run (default: what fits)",
    )
    return parser


def asked_recipe(options: argparse.Namespace) -> Recipe:
    """What --recipe, fitted to --data if it looks at that, --start, --set and --arch say.

    Raises ValueError for a name or a value that does not exist, for a start, a teacher or a
    sampler that is not there or does not fit, and for data that cannot be read.
    """
    name = options.recipe or DEFAULT_RECIPE
    recipe = find_recipe(name)
    if options.start is not None:
        recipe = recipe.replace(start=options.start)
    if not options.settings:  # before data, which may take minutes
        asked = _changed(recipe, options)
        find_start(asked)
        find_teacher(asked)
        build_sampler(asked.sampler, get_space(asked.space), asked.sampler_options)
    if name in FITTED and not options.settings:
        if options.data is None:
            raise ValueError(f"--recipe {name} is for your own images: name their folder (--data)")
        source = read_source(options.data)
        counts = np.bincount(source.train.labels, minlength=len(source.classes))
        spare = len(cut_test(source)[0]) - len(source.classes)
        recipe = fitted(name, recipe, counts.tolist(), spare)
    return _changed(recipe, options)


def _changed(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """By --set and --arch."""
    recipe = with_settings(recipe, options.set)
    if options.arch is None:
        return recipe
    for setting in options.set:
        if setting.partition("=")[0] in ("sampler", "sampler_options.archs"):
            raise ValueError(
                f"--arch trains one subnet alone: leave out --set {setting}, or leave out --arch"
            )
    return alone(recipe, options.arch)


def alone(recipe: Recipe, arch: str) -> Recipe:
    """The recipe that trains one arch, of JSON or of a file, and nothing else of its supernet.

    Raises ValueError for what is not an arch of the recipe's space.
    """
    space = get_space(recipe.space)
    document = space.arch_to_json(read_arch(space, arch))
    return recipe.replace(
        sampler="fixed-arch",
        sampler_options=recipe.sampler_options.replace(archs=(document,)),
    )


def find_job(options: argparse.Namespace, world_size: int = 1) -> Job:
    """The run that the options ask of so many processes.

    Raises ValueError for a user's mistake; writes nothing.
    """
    if options.dry_run_batch is not None and not options.dry_run:
        raise ValueError(
            f"--dry-run-batch {options.dry_run_batch} is of a dry run: add --dry-run, or leave it "
            "out (--set batch_size changes a run's)"
        )
    if options.resume is not None:
        given = (("--recipe", options.recipe), ("--out", options.out), ("--arch", options.arch))
        for option, value in given:
            if value is not None:
                raise ValueError(
                    f"--resume {options.resume} keeps the run's recipe and folder: leave out "
                    f"{option} {value} (--set changes settings), or leave out --resume"
                )
        if options.hours is not None:
            raise ValueError(
                f"--hours {options.hours:g}: a run that is resumed keeps its epochs; leave it out"
            )
        if options.start is not None:
            raise ValueError(
                f"--start {options.start}: a run that is resumed has begun; leave it out"
            )
        folder, resume = options.resume, has_checkpoint(options.resume)
        before = _recipe_of(folder)
        recipe = with_settings(before, options.set)
        find_teacher(recipe)
        changed = [name for name in FIXED if value_of(recipe, name) != value_of(before, name)]
        if resume and changed:
            raise ValueError(
                f"a resumed run keeps its {', '.join(changed)}; leave that out, or start a new run "
                "with --out"
            )
    else:
        recipe = asked_recipe(options)
        _check_length(options, recipe)
        folder, resume = options.out or free_folder(Path("runs"), recipe.name), False
        refuse_run_in(folder)
    recipe = recipe.replace(data=full_path(options.data or recipe.data))
    _check_resolution(recipe)
    if recipe.bundle_name:
        check_name(recipe.bundle_name)
    check_world_size(recipe, world_size)
    if options.dry_run and world_size > 1:
        raise ValueError("--dry-run tries a recipe in one process; leave out torchrun")
    if options.hours is not None and world_size > 1:
        raise ValueError(
            f"--hours {options.hours:g} is planned in one process, by the steps that it tries; of "
            f"{world_size} processes give --set training_hours={options.hours:g}"
        )
    if not options.dry_run:  # which runs on the CPU too
        check_device(recipe.device, local_processes())
    return Job(recipe, folder, resume)


def _check_length(options: argparse.Namespace, recipe: Recipe) -> None:
    """Raises ValueError where --hours is not the only length of the run."""
    if options.hours is None:
        return
    named = [(name, value_of(recipe, name)) for name in ("compute", "training_hours")]
    lengths = [f"{name}={value:g}" for name, value in named if value]
    lengths += [setting for setting in options.set if setting.startswith("epochs=")]
    if lengths:
        raise ValueError(
            f"--hours {options.hours:g} and {lengths[0]} both say how long a run is: leave one out"
        )


def _check_resolution(recipe: Recipe) -> None:
    """Raises ValueError unless images are read at the size of the space's largest subnet."""
    space = get_space(recipe.space)
    side = space.resolution(space.largest)
    if recipe.resolution != side:
        raise ValueError(
            f"resolution is {recipe.resolution}, but {recipe.space} reads images of {side}x{side}: "
            f"set resolution={side}, or another space"
        )


def check_world_size(recipe: Recipe, world_size: int) -> None:
    """Raises ValueError unless so many processes do to each image what one process would.

    Mixed images find their partners in the same process only if it has an even number of them.
    A teacher's answers are kept by the process that asked.
    """
    if world_size > 1 and recipe.distillation.views:
        raise ValueError(
            f"distillation.views={recipe.distillation.views} keeps a teacher's answers in one "
            f"process, and here are {world_size}: set it to 0, or start without torchrun"
        )
    least = 2 if recipe.augment.mixes else 1
    allowed = [n for n in range(2, recipe.batch_size + 1) if recipe.batch_size % (n * least) == 0]
    if world_size > 1 and world_size not in allowed:
        mixed = " of mixed images, which takes even shares" if least == 2 else ""
        raise ValueError(
            f"{world_size} processes cannot share a batch_size of {recipe.batch_size}{mixed}; "
            f"start torchrun with {', '.join(map(str, [1, *allowed]))} processes, or set another"
        )


def check_device(device: str, processes: int) -> None:
    """Raises ValueError unless this machine has a device for each of its processes of the run."""
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"no device {device!r}; there are: cpu, cuda, cuda:1, ...") from None
    if asked.type != "cuda":
        return
    if asked.index is not None and processes > 1:
        raise ValueError(
            f"device is {device}; of several processes each takes its own GPU: set device=cuda"
        )
    gpus, needed = torch.cuda.device_count(), processes if asked.index is None else asked.index + 1
    if gpus < needed:
        raise ValueError(
            f"device is {device}; the run needs GPUs on this machine: {needed}, it has {gpus}; set "
            "device=cpu, or start fewer processes (torchrun --nproc-per-node gpu)"
        )


def refuse_run_in(folder: Path) -> None:
    """Raises ValueError for a folder in which no run can begin."""
    if (folder / RECIPE_NAME).exists():
        raise ValueError(
            f"{folder} holds a run; resume it with --resume {shlex.quote(str(folder))}, or "
            "name another"
        )


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or with the first free number behind it."""
    folder, number = parent / name, 2
    while folder.exists():
        folder, number = parent / f"{name}-{number}", number + 1
    return folder


def _recipe_of(folder: Path) -> Recipe:
    path = folder / RECIPE_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no run (no recipe.json); start one with --out {folder}")
    return read_recipe(path)
