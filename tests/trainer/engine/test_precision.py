"""Half precision: the supernet alone is in it, gradients that overflow cost a step and no more."""

import signal
from functools import partial
from itertools import pairwise

import pytest
import torch

from tests.trainer.conftest import grown
from tests.trainer.short_runs import short_run
from tests.trainer.test_resume import assert_same
from trainer.data.run_data import run_data
from trainer.dry_run.measure import random_splits
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.log import read_log
from trainer.engine.optim import Schedule
from trainer.engine.state import fresh_state
from trainer.engine.step import add_gradients
from trainer.recipes.config import get_recipe, with_settings

SHORT = ["epochs=1", "generator.pretrain_steps=5", "evaluate_every=9", "calibration_batches=1"]
SHORT += ["space=nano-vit", "batch_size=32", "shift_every=4", "warm_up_share=0", "threads=1"]
SHORT += ["held_out_images=1110", "tensorboard=false"]
STEPS = 10


def arguments(*settings):
    return [p for s in (*SHORT, *settings) for p in ("--set", s)]


def steps_of(folder):
    return [r for r in read_log(folder / "log.jsonl") if r["kind"] == "step"]


def test_steps_that_overflow_are_skipped_counted_and_resumed(tmp_path, monkeypatch):
    # far too large at first, and larger again after four good steps
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**24, growth_interval=4)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    chosen = arguments("precision=fp16", "generator.masked_every=2", "ema=0.9")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert short_run([*chosen, "--out", str(whole)]) == 0
    stop = {"rank": 0, "step": 7, "signal": int(signal.SIGTERM)}
    assert short_run([*chosen, "--out", str(parts)], stop) == 143
    assert load_checkpoint(parts)["scaler"]["scale"] < 2.0**24
    assert short_run(["--resume", str(parts)]) == 0
    assert_same(load_checkpoint(whole), load_checkpoint(parts))

    steps = steps_of(whole)
    skipped = [record["skipped_steps"] for record in steps]
    assert 0 < skipped[-1] == load_checkpoint(whole)["skipped_steps"] < STEPS
    assert load_checkpoint(whole)["average"]["updates"] == STEPS - skipped[-1]
    for before, now in pairwise(steps):
        assert (now["scale"] < before["scale"]) == (now["skipped_steps"] > before["skipped_steps"])
    assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(whole)["net"].values())


def test_a_run_changes_its_precision_when_it_is_resumed(tmp_path):
    folder, steps_per_epoch = tmp_path / "run", 3
    for number, precision in enumerate(("fp16", "fp32", "bf16", "fp16")):
        where = ["--resume", str(folder)] if number else ["--out", str(folder)]
        epochs = ["--set", f"epochs={number + 1}"]
        chosen = ["--set", f"precision={precision}"]
        new = [] if number else arguments("held_out_images=1330")
        assert short_run([*new, *epochs, *chosen, *where]) == 0
    steps = steps_of(folder)
    assert [("scale" in r) for r in steps] == [
        precision == "fp16"
        for precision in ("fp16", "fp32", "bf16", "fp16")
        for _ in range(steps_per_epoch)
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("space", ["nano-cnn", "nano-vit"])
def test_gradients_are_those_of_full_precision_and_the_generators_are_in_it(precision, space):
    found = []
    for chosen in ("fp32", precision):
        settings = [f"space={space}", "batch_size=32", f"precision={chosen}"]
        recipe = with_settings(get_recipe("digits"), settings)
        splits = random_splits(recipe, 10, 64)
        state = grown(fresh_state(recipe, splits))
        batch = run_data(recipe, splits).train.batch(0, 0)
        schedule = Schedule(0.01, 0.01, temperature=0.7, masked=True)
        result = add_gradients(state, batch, schedule, recipe)
        state.scaler.unscale_(state.optimizer)
        state.scaler.unscale_(state.generator_optimizer)
        parameters = [*state.net.parameters(), *state.generator.parameters()]
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in parameters)
        gradients = [
            torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            for module in (state.net, state.generator)
        ]
        found.append((result, gradients))
    (exact, expected), (result, gradients) = found
    assert result.loss == pytest.approx(exact.loss, rel=0.02)
    assert result.resource_loss == exact.resource_loss
    for one, other in zip(gradients, expected, strict=True):
        assert float((one - other).norm()) < 0.1 * float(other.norm())
