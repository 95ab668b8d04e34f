"""The loop: Algorithm 1 of the paper, with Algorithm 2 inside."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from models.generator.network import one_numpy_thread
from models.nets.normalize import BatchStatistics
from models.space.arch import Arch
from trainer.data.run_data import RunData, run_data
from trainer.data.splits import Splits
from trainer.engine.checkpoint import load_checkpoint, save_checkpoint
from trainer.engine.horizon import horizon_of
from trainer.engine.interrupt import Interrupt, Stopped
from trainer.engine.optim import schedule_at
from trainer.engine.probe import probe_of
from trainer.engine.seeds import seed_step
from trainer.engine.state import TrainingState, fresh_state
from trainer.engine.step import check_finite, pretrain_generator, train_step
from trainer.evaluation import Abandoned, calibrated, evaluate, until
from trainer.ranks import ALONE, Ranks
from trainer.recipes.recipe import Recipe
from trainer.report.monitor import Monitor, Silence
from trainer.start.begin import begin


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

    All ranks run it, each on its own images. They share evaluations out; the first writes.

    Raises Stopped after a signal, ValueError when the loss is not a number, Ended when another rank
    is gone.
    """
    with ranks.together():
        state = fresh_state(recipe, splits)
        sampler = state.sampler
        data = run_data(recipe, splits, ranks)
        steps_per_epoch = len(data.train)
        horizon = horizon_of(recipe, sampler, steps_per_epoch)
        shift_every = recipe.steps_between_updates(horizon.steps)
        if sampler.learns and not recipe.updates(horizon.steps):
            print(
                f"warning: B stays uniform: shift_every is {shift_every}, and the run has "
                f"{horizon.steps} steps, of which the first {recipe.warm_up_share:.0%} are a "
                "warm-up; shift_every=0 fits it to the run",
                file=sys.stderr,
            )
        warm_up_steps = round(recipe.warm_up_share * horizon.steps)
        if resume:
            state.load(load_checkpoint(folder))
        else:
            begin(state, recipe, splits, ranks)
        stream = data.train.stream(*divmod(state.step, steps_per_epoch))
        monitor: Monitor | Silence = Silence()
        if ranks.is_first:
            monitor = Monitor(folder, recipe, splits, state, horizon)
    served = () if state.average is None else state.average.net.parameters()
    ranks.begin_alike([*state.net.parameters(), *served, *state.before.values()])
    with interrupt.deferred(), monitor, one_numpy_thread():
        saved_at = time.monotonic()

        def keep(*, at_once: bool) -> None:
            """Write a checkpoint if it is time; end if a signal has come to any rank."""
            nonlocal saved_at
            stop = int(ranks.most(interrupt.signal or 0))
            is_due = time.monotonic() - saved_at > recipe.checkpoint_every_s
            if ranks.is_first and (at_once or is_due or stop):
                with interrupt.held():
                    save_checkpoint(folder, state.to_checkpoint())
                saved_at = time.monotonic()
            if stop:
                ranks.wait()  # a rank that ends makes torchrun end the others
                raise Stopped(stop)

        def spent() -> float:
            """Of the horizon's budget; of a clock all ranks read the same."""
            return ranks.most(state.total_s) if recipe.training_hours else state.compute

        if state.step == 0:

            def after(step: int) -> None:
                monitor.pretraining(step)
                keep(at_once=step == recipe.generator.pretrain_steps)

            pretrain_generator(state, recipe, after)
            state.elapsed_s, state.started_at = 0.0, time.monotonic()  # hours are of steps
        ranks.begin_alike(state.generator.parameters())
        if state.evaluation_due:
            evaluate_now(state, data, recipe, monitor, interrupt, ranks)
            keep(at_once=False)  # a signal ends it, and the run
        gone = spent()
        is_over = horizon.is_over(state.step, gone)
        while not is_over:
            # ---- Algorithm 1 -------------------------------------------------------------------
            seed_step(recipe.seed, state.step)
            position = horizon.position(state.step, gone)
            schedule = schedule_at(state.step, horizon.steps, recipe, position)
            with ranks.together():
                batch = next(stream)  # (x, y)
            result = train_step(state, batch, schedule, recipe, ranks)  # b ~ B, a = AG(b), descent

            # ---- Algorithm 2, every q steps ----------------------------------------------------
            if sampler.learns and state.step % shift_every == 0:
                drops: list[float | None] | None = None
                if horizon.position(state.step, spent()) >= warm_up_steps:
                    turn = state.step // shift_every
                    with ranks.together():
                        held_out = data.held_out.batch(*divmod(turn, len(data.held_out)))
                    probe = probe_of(state, held_out, schedule, recipe, data.decisions, ranks)
                    drops = sampler.update(probe, state.rng)
                    state.compute += probe.compute
                    check_finite("loss on held-out images", drops, state.step, recipe)
                state.keep_weights()
                monitor.groups(drops)

            # ---- what one sees, and what is kept -----------------------------------------------
            gone = spent()
            is_over = horizon.is_over(state.step, gone)
            if recipe.skip_broken:
                monitor.broken(ranks.union(data.broken))
            monitor.step(result, schedule, gone)
            epoch, index = divmod(state.step, steps_per_epoch)
            every = recipe.evaluate_every
            is_evaluated = every > 0 and index == 0 and epoch % every == 0
            if is_evaluated and not is_over:
                evaluate_now(state, data, recipe, monitor, interrupt, ranks)
            keep(at_once=is_over)


def evaluate_now(
    state: TrainingState,
    data: RunData,
    recipe: Recipe,
    monitor: Monitor | Silence,
    interrupt: Interrupt,
    ranks: Ranks,
) -> None:
    """Evaluate at fixed budgets; a signal leaves that to the process that resumes."""
    started = time.monotonic()
    net, device = state.served_net, recipe.device

    def asked_to_stop() -> bool:
        return interrupt.signal is not None

    def statistics_of(arch: Arch) -> BatchStatistics:
        if state.frozen is not None:
            return state.frozen
        return calibrated(net, arch, until(asked_to_stop, data.calibration), device)

    try:
        evaluation = evaluate(
            net,
            state.generator,
            state.sampler.groups,
            budgets=recipe.evaluation_budgets,
            statistics_of=statistics_of,
            data=data.decisions,
            device=device,
            frozen=state.frozen,
            archs=state.sampler.archs,
            stop=asked_to_stop,
            ranks=ranks,
        )
    except Abandoned:
        state.evaluation_due = True
        return
    state.evaluation_due = False
    monitor.evaluation(evaluation, time.monotonic() - started)
