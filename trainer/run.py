"""Train a supernet, its architecture generator and its sampling distribution.

    python -m trainer.run                                    # digits, a minute or two
    python -m trainer.run --recipe cifar10-cnn --data cifar10.parquet
    python -m trainer.run --recipe cifar10-cnn --set epochs=2 --set sampler=shift
    python -m trainer.run --recipe runs/digits/recipe.json   # as that run, anew
    python -m trainer.run --resume runs/digits
    python -m trainer.run --recipe vit-tiny --dry-run        # what it needs; no data set
    torchrun --nproc-per-node 8 -m trainer.run --recipe vit-tiny --data PATH    # on 8 GPUs

A run leaves in its folder: recipe.json, log.jsonl, checkpoint.pt, and at the end bundle/ (what the
server reads), frontier.json and report/ (tables and plots). The loop itself is ``trainer.loop``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist

from models.extras import EXTRAS, require
from trainer.data.layout import printable
from trainer.data.run_data import read_splits
from trainer.dry_run.hours import within_hours
from trainer.dry_run.report import print_dry_run
from trainer.engine.checkpoint import has_checkpoint, kept_state, kept_step
from trainer.engine.claim import claimed
from trainer.engine.disk import write_whole
from trainer.engine.interrupt import Interrupt, Stopped
from trainer.engine.log import Record, set_aside
from trainer.engine.memory import keep_freed_memory
from trainer.engine.teacher import open_teacher
from trainer.engine.trained_on import in_words, refuse_other_data
from trainer.finish import finish
from trainer.job import RECIPE_NAME, asked_recipe, build_parser, find_job, refuse_run_in
from trainer.loop import train
from trainer.ranks import Ended, Ranks, ranks_here
from trainer.recipes.config import listing

DESCRIPTION = (__doc__ or "").split("A run leaves")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Exit status: 0 done, 1 another process is gone, 2 a mistake of the user's, 128 + n stopped.
    """
    ranks = ranks_here()
    with ranks.one_voice():
        return run(build_parser(DESCRIPTION).parse_args(arguments), ranks)


def run(options: argparse.Namespace, ranks: Ranks) -> int:
    """What ``main`` does with the options, in each of the processes; answers the exit status."""
    folder: Path | None = None
    started: Path | None = None
    result: Record = {}
    with Interrupt(repeats=dist.is_torchelastic_launched()) as interrupt:
        try:
            require("train", *EXTRAS["train"])  # of which some are imported when hours are gone
            if options.settings:
                print(listing(asked_recipe(options)))
                return 0
            job = find_job(options, ranks.world_size)
            recipe, folder = job.recipe, job.folder
            if recipe.device.startswith("cuda"):
                # of fp32; the other precisions do not look at it
                torch.backends.cuda.matmul.fp32_precision = "tf32"
            keep_freed_memory()
            if recipe.threads:
                torch.set_num_threads(recipe.threads)
            if options.hours is not None:
                recipe, said = within_hours(recipe, options.hours)
                print(said, file=sys.stderr)
            if options.dry_run:
                return print_dry_run(recipe, options.dry_run_batch, as_json=options.json)
            print(f"reading {recipe.data}", file=sys.stderr)
            with ranks.connected(recipe.device), ExitStack() as held:
                with ranks.together():
                    if ranks.is_first:
                        held.enter_context(claimed(folder))
                        if options.resume is None:  # another may have begun one here meanwhile
                            refuse_run_in(folder)
                    splits = read_splits(recipe)
                    open_teacher(recipe, splits.labels)  # one of other classes ends here
                    kept = kept_state(folder) if job.resume else None
                    if kept is not None:  # before the recipe that is there is written over
                        refuse_other_data(kept, in_words(splits))
                    del kept
                    if ranks.is_first:
                        started = folder
                        document = recipe.model_dump_json(indent=2)
                        write_whole(folder / RECIPE_NAME, document + "\n")
                        if not job.resume:
                            set_aside(folder / "log.jsonl")
                print(f"{recipe.name} in {printable(str(folder))}: {splits}", file=sys.stderr)
                for line in splits.passed_over:
                    print(f"passed over: {line}", file=sys.stderr)
                print(f"images {splits.memory}", file=sys.stderr)
                train(recipe, splits, folder, interrupt, resume=job.resume, ranks=ranks)
                result = finish(recipe, splits, folder, ranks)
        except (ValueError, OSError, Ended, Stopped) as error:
            # the signal with which torchrun ends the others must not end this line
            with interrupt.deferred():
                status, words = _ending(error, folder)
                kept = go_on(started, ranks)
                if not kept and isinstance(error, Ended | Stopped):
                    kept = "; nothing had begun"
                print(f"{words}{kept}", file=sys.stderr)
                return status
    if options.json and ranks.is_first:
        print(json.dumps(result))
    return 0


def _ending(error: BaseException, folder: Path | None) -> tuple[int, str]:
    """The exit status, and what is said."""
    if isinstance(error, Stopped):
        return 128 + error.signal, str(error)
    if isinstance(error, Ended):
        return 1, str(error)
    if isinstance(error, OSError):
        return 2, f"error: {error.filename or folder}: {error.strerror or error}"
    return 2, f"error: {error}"


def go_on(folder: Path | None, ranks: Ranks) -> str:
    """How to go on with the run in a folder, by what its disk holds; "" if no run has begun."""
    if folder is None:
        return ""
    step, command = kept_step(folder), f"{ranks.command} --resume {shlex.quote(str(folder))}"
    if step is not None:
        return f"; step {step:,} is kept; go on with: {command}"
    return "" if has_checkpoint(folder) else f"; nothing is kept yet; begin again with: {command}"


if __name__ == "__main__":
    sys.exit(main())
