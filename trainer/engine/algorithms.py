"""A batch in Algorithm 1 and in Algorithm 2, as training, dry runs and benchmarks do them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from models.space.relaxed import RelaxedFlops
from trainer.data.batches import Batch
from trainer.engine.horizon import step_compute
from trainer.engine.optim import Schedule, set_learning_rate
from trainer.engine.ranks import ALONE, Ranks
from trainer.engine.state import TrainingState
from trainer.engine.step import StepResult, train_step
from trainer.recipes.recipe import Recipe
from trainer.samplers.probe import Probe


def one_step(
    state: TrainingState,
    relaxed_flops: RelaxedFlops,
    batch: Batch,
    recipe: Recipe,
    schedule: Schedule,
    *,
    masked: bool,
    progress: float = 0.0,
    ranks: Ranks = ALONE,
) -> StepResult:
    """Algorithm 1 on (x, y): b ~ B, a = AG(b), losses, gradients, descent, and the average.

    Raises ValueError, before any weight moves, when the loss is no finite number.
    """
    set_learning_rate(state.optimizer, schedule.learning_rate)
    set_learning_rate(state.generator_optimizer, schedule.generator_learning_rate)
    state.optimizer.zero_grad()
    state.generator_optimizer.zero_grad()
    draws = state.sampler.draw(state.rng, progress)
    result = train_step(
        state.net,
        state.generator,
        relaxed_flops,
        draws,
        batch.images.to(recipe.device),
        batch.labels.to(recipe.device),
        recipe,
        masked=masked,
        temperature=schedule.temperature,
        rng=state.rng,
        scaler=state.scaler,
        ranks=ranks,
        masked_net=state.compiled,
    )
    check_finite("loss", (result.loss,), state.step, recipe)
    state.descend(recipe.optimizer.clip_norm)
    flops, images = [flops for flops, _ in result.drawn], len(batch.images) * ranks.world_size
    state.compute += step_compute(draws, flops, images, state.net.space.max_flops, masked=masked)
    if state.average is not None:
        state.average.update(state.net)
    return result


def probe_of(
    state: TrainingState, batch: Batch, recipe: Recipe, schedule: Schedule, ranks: Ranks = ALONE
) -> Probe:
    """What Algorithm 2 may ask of the weights of now and of before, on held-out images."""
    return Probe(
        state.net,
        state.generator,
        state.before,
        batch.images.to(recipe.device),
        batch.labels.to(recipe.device),
        noise=state.rng,
        temperature=schedule.temperature,
        accumulate=recipe.accumulate,
        recompute=recipe.activation_checkpointing,
        ranks=ranks,
    )


def check_finite(what: str, values: Iterable[float | None], step: int, recipe: Recipe) -> None:
    """Raises ValueError, before a checkpoint is made of it."""
    if not all(value is None or math.isfinite(value) for value in values):
        raise ValueError(
            f"the {what} is no finite number at step {step}; resume the checkpoint with a lower "
            f"optimizer.learning_rate (it is {recipe.optimizer.learning_rate:g}), or with "
            "optimizer.clip_norm=1"
        )
