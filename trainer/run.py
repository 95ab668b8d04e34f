"""Train a supernet, its architecture generator and its sampling distribution.

    python -m trainer.run                                    # digits, a minute or two
    python -m trainer.run --recipe cifar10-cnn --data cifar10.parquet
    python -m trainer.run --recipe cifar10-cnn --set epochs=2 --set sampler=uniform-budget
    python -m trainer.run --recipe runs/digits/recipe.json   # as that run, anew
    python -m trainer.run --resume runs/digits
    python -m trainer.run --recipe vit-tiny --dry-run        # what it needs; no data set
    torchrun --nproc-per-node 8 -m trainer.run --recipe vit-tiny --data PATH    # on 8 GPUs

``train`` below is the loop, Algorithm 1 of the paper with Algorithm 2 inside. A run leaves in its
folder: recipe.json, log.jsonl, checkpoint.pt, and at the end bundle/ (what the server reads),
frontier.json and report/ (tables and plots).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from models.generator.network import one_numpy_thread
from models.space.relaxed import RelaxedFlops
from trainer.data.run_data import RunData, read_splits, run_data
from trainer.data.splits import Splits
from trainer.dry_run.report import print_dry_run
from trainer.engine.algorithms import check_finite, one_step, probe_of
from trainer.engine.checkpoint import load_checkpoint, save_checkpoint
from trainer.engine.disk import write_whole
from trainer.engine.horizon import horizon_of
from trainer.engine.interrupt import Interrupt, Stopped
from trainer.engine.optim import schedule_at
from trainer.engine.ranks import ALONE, Ended, Ranks, ranks_here
from trainer.engine.seeds import seed_step
from trainer.engine.state import TrainingState, fresh_state
from trainer.engine.step import pretrain_generator
from trainer.evaluate import Abandoned, evaluate
from trainer.finish import finish
from trainer.recipes.command import RECIPE_NAME, build_parser, find_job
from trainer.recipes.config import recipe_to_json
from trainer.recipes.recipe import Recipe
from trainer.report.log import Record
from trainer.report.monitor import Monitor, Silence

DESCRIPTION = (__doc__ or "").split("``train``")[0]


def train(
    recipe: Recipe,
    splits: Splits,
    folder: Path,
    interrupt: Interrupt,
    *,
    resume: bool,
    ranks: Ranks = ALONE,
) -> None:
    """The loop. Leaves a checkpoint of the finished run, or of where a signal stopped it.

    All ranks run it, each on its own images; the first evaluates and writes.

    Raises Stopped after a signal, ValueError when the loss is no number, Ended when another rank
    is gone.
    """
    with ranks.together():
        state = fresh_state(recipe, splits)
        net, generator, sampler, rng = state.net, state.generator, state.sampler, state.rng
        relaxed_flops = RelaxedFlops(generator.space.flops_rule)
        data = run_data(recipe, splits, ranks)
        steps_per_epoch = len(data.train)
        horizon = horizon_of(recipe, sampler, steps_per_epoch)
        total_steps = horizon.steps
        warm_up_steps = round(recipe.warm_up_share * total_steps)
        if resume:
            state.load(load_checkpoint(folder))
        if state.step == 0:
            pretrain_generator(generator, relaxed_flops, recipe.generator, rng)
        stream = data.train.stream(*divmod(state.step, steps_per_epoch))
        monitor: Monitor | Silence = Silence()
        if ranks.is_first:
            monitor = Monitor(folder, recipe, splits, state, horizon)
    ranks.begin_alike([*net.parameters(), *generator.parameters(), *state.before.values()])
    with interrupt.deferred(), monitor, one_numpy_thread():
        saved_at = time.monotonic()
        if state.evaluation_due and ranks.is_first:
            evaluate_now(state, data, recipe, monitor, interrupt)
        while not horizon.is_over(state.step, state.compute):
            # ---- Algorithm 1 -------------------------------------------------------------------
            seed_step(recipe.seed, state.step)
            position = horizon.position(state.step, state.compute)
            schedule = schedule_at(position, total_steps, recipe)
            with ranks.together():
                batch = next(stream)  # (x, y)
            masked = state.step % recipe.generator.masked_every == 0
            result = one_step(  # b ~ B, a = AG(b), losses, gradients, descent
                state,
                relaxed_flops,
                batch,
                recipe,
                schedule,
                masked=masked,
                progress=position / total_steps,
                ranks=ranks,
            )

            # ---- Algorithm 2, every q steps ----------------------------------------------------
            if sampler.learns and state.step % recipe.shift_every == 0:
                drops: list[float | None] | None = None
                if horizon.position(state.step, state.compute) >= warm_up_steps:
                    turn = state.step // recipe.shift_every
                    with ranks.together():
                        held_out = data.held_out.batch(*divmod(turn, len(data.held_out)))
                    probe = probe_of(state, held_out, recipe, schedule, ranks)
                    drops = sampler.update(probe, rng)
                    state.compute += probe.compute * ranks.world_size
                    check_finite("loss on held-out images", drops, state.step, recipe)
                state.keep_weights()
                monitor.groups(drops)

            # ---- what one sees, and what is kept -----------------------------------------------
            is_over = horizon.is_over(state.step, state.compute)
            if recipe.skip_broken:
                monitor.broken(ranks.union(data.broken))
            monitor.step(result, schedule)
            epoch, index = divmod(state.step, steps_per_epoch)
            every = recipe.evaluate_every
            is_evaluated = every > 0 and index == 0 and epoch % every == 0
            if is_evaluated and not is_over and ranks.is_first:
                evaluate_now(state, data, recipe, monitor, interrupt)
            is_due = time.monotonic() - saved_at > recipe.checkpoint_every_s
            stop = int(ranks.most(interrupt.signal or 0))
            if ranks.is_first and (is_due or stop or is_over):
                save_checkpoint(folder, state.to_checkpoint())
                saved_at = time.monotonic()
            if stop:
                ranks.wait()  # a rank that ends makes torchrun end the others
                raise Stopped(stop)


def evaluate_now(
    state: TrainingState,
    data: RunData,
    recipe: Recipe,
    monitor: Monitor | Silence,
    interrupt: Interrupt,
) -> None:
    """Evaluate at fixed budgets; a signal leaves that to the process that resumes."""
    started = time.monotonic()
    try:
        evaluation = evaluate(
            state.served_net,
            state.generator,
            state.sampler.groups,
            budgets=recipe.evaluation_budgets,
            calibration=data.calibration,
            data=data.decisions,
            device=recipe.device,
            stop=lambda: interrupt.signal is not None,
        )
    except Abandoned:
        state.evaluation_due = True
        return
    state.evaluation_due = False
    monitor.evaluation(evaluation, time.monotonic() - started)


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
    result: Record = {}
    try:
        with Interrupt(repeats=dist.is_torchelastic_launched()) as interrupt:
            job = find_job(options, ranks.world_size)
            recipe, folder = job.recipe, job.folder
            if recipe.threads:
                torch.set_num_threads(recipe.threads)
            if options.dry_run:
                return print_dry_run(recipe, options.dry_run_batch, as_json=options.json)
            with ranks.connected(recipe.device):
                with ranks.together():
                    splits = read_splits(recipe)
                    if ranks.is_first:
                        folder.mkdir(parents=True, exist_ok=True)
                        document = json.dumps(recipe_to_json(recipe), indent=2)
                        write_whole(folder / RECIPE_NAME, document + "\n")
                print(f"{recipe.name} in {folder}; images {splits.memory}", file=sys.stderr)
                train(recipe, splits, folder, interrupt, resume=job.resume, ranks=ranks)
            if ranks.is_first:
                result = finish(recipe, splits, folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or folder
        print(f"error: {where}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (Ended, Stopped) as stopped:
        again = "" if folder is None else f"; go on with: {ranks.command} --resume {folder}"
        print(f"{stopped}{again}", file=sys.stderr)
        return 128 + stopped.signal if isinstance(stopped, Stopped) else 1
    if options.json and ranks.is_first:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
