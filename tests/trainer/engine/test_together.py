"""Options that are tested one by one elsewhere take a step together, and an update."""

import math
from dataclasses import replace

import pytest

from models.nets.normalize import FrozenStatistics
from models.spaces import get_space
from tests.trainer.start.test_start import random_statistics
from trainer.data.run_data import run_data
from trainer.dry_run.measure import random_splits
from trainer.engine.optim import schedule_at
from trainer.engine.probe import probe_of
from trainer.engine.state import fresh_state
from trainer.engine.step import train_step
from trainer.recipes.config import get_recipe, with_settings

TOGETHER = [
    *("accumulate=2", "activation_checkpointing=true", "precision=bf16", "drop_path=0.1"),
    *("ema=0.9", "distillation.teacher=largest", "distillation.precision=bf16"),
    *("augment.mixup=0.8", "augment.cutmix=1.0", "augment.erase=0.5", "augment.repeats=2"),
    *("optimizer.clip_norm=1.0", "sampler_options.as_printed=true", "sampler_options.jitter=false"),
    *("batch_size=8", "threads=1", "sampler_options.step_flops=1e5"),
]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("space", "sampler"),
    [("cifar-cnn", "shift"), ("cifar-cnn", "regret"), ("nano-vit", "influence")],
)
def test_options_go_together(space, sampler, frozen):
    """Also where a space leaves nothing to decide at some places, and where statistics stay."""
    layout = get_space(space)
    if frozen and not layout.norms:
        pytest.skip("it has no statistics")
    side = layout.resolution(layout.largest)
    asked = [f"space={space}", f"resolution={side}", f"sampler={sampler}", *TOGETHER]
    recipe = with_settings(get_recipe("digits"), asked)
    splits = random_splits(recipe, 10, 8)
    state, data = fresh_state(recipe, splits), run_data(recipe, splits)
    if frozen:
        state.frozen = FrozenStatistics(random_statistics(layout))
    batch, schedule = data.train.batch(0, 0), schedule_at(0, 10, recipe)
    for masked in (True, False):
        result = train_step(state, batch, replace(schedule, masked=masked), recipe)
        assert math.isfinite(result.loss + result.resource_loss)
    probe = probe_of(state, data.held_out.batch(0, 0), schedule, recipe, data.decisions)
    drops = state.sampler.update(probe, state.rng)
    assert all(drop is None or math.isfinite(drop) for drop in drops)
