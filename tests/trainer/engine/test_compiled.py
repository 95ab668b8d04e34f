"""torch.compile changes how long masked steps take, and nothing else."""

import signal
from dataclasses import replace

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
from trainer.engine.step import train_step
from trainer.recipes.config import get_recipe, with_settings

VIT = ["space=nano-vit", "optimizer.name=adamw", "optimizer.learning_rate=0.001"]
MORE = ["drop_path=0.2", "accumulate=2", "ema=0.9", "batch_size=8"]
SCHEDULE = Schedule(learning_rate=1e-3, generator_learning_rate=1e-3, temperature=0.7, masked=True)


def with_backend(monkeypatch, backend):
    """torch's own kernels, or none, in place of compiled ones: it takes less time."""
    real = torch.compile

    def chosen(net, options, **how):
        return real(net, backend=backend, **how)

    monkeypatch.setattr(torch, "compile", chosen)


def trained(settings, steps=4):
    """State and losses after some steps, every second one masked."""
    recipe = with_settings(get_recipe("digits"), settings)
    splits = random_splits(recipe, 10, recipe.batch_size)
    state = grown(fresh_state(recipe, splits))
    batch = run_data(recipe, splits).train.batch(0, 0)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        schedule = replace(SCHEDULE, masked=step % 2 == 0)
        losses.append(train_step(state, batch, schedule, recipe).loss)
    return state, losses


def assert_near(settings):
    eager, expected = trained(settings)
    compiled, losses = trained([*settings, "compile=true"])
    assert compiled.compiled is not None
    assert losses == pytest.approx(expected, rel=1e-4)
    for part in ("net", "generator"):
        one, other = (getattr(state, part).state_dict() for state in (eager, compiled))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("settings", [VIT, ["space=nano-cnn", "optimizer.learning_rate=0.002"]])
def test_compiled_steps_come_to_what_eager_ones_do(settings):
    assert_near([*settings, "drop_path=0.2", "batch_size=8"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_traced_steps_come_to_what_eager_ones_do(monkeypatch):
    with_backend(monkeypatch, "aot_eager")
    assert_near([*VIT, *MORE])


SHORT = ["epochs=1", "generator.pretrain_steps=5", "evaluate_every=9", "calibration_batches=1"]
SHORT += [
    "batch_size=64",
    "held_out_share=0.75",
    "tensorboard=false",
    "shift_every=2",
    "warm_up_share=0",
    "threads=1",
    *VIT,
    "ema=0.9",
]
SHORT += ["generator.masked_every=2"]


def test_a_run_goes_on_bit_for_bit_and_may_leave_it_out(tmp_path, monkeypatch):
    with_backend(monkeypatch, "eager")
    chosen = [p for s in (*SHORT, "compile=true") for p in ("--set", s)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert short_run([*chosen, "--out", str(whole)]) == 0
    stop = {"rank": 0, "step": 3, "signal": int(signal.SIGTERM)}
    assert short_run([*chosen, "--out", str(parts)], stop) == 128 + signal.SIGTERM
    assert short_run(["--resume", str(parts)]) == 0
    assert_same(load_checkpoint(whole), load_checkpoint(parts))
    assert not any("_orig_mod" in name for name in load_checkpoint(whole)["net"])
    assert not any("_orig_mod" in name for name in load_checkpoint(whole)["before"])
    without = ["--set", "compile=false", "--set", "epochs=2"]
    assert short_run(["--resume", str(whole), *without]) == 0
    assert read_log(whole / "log.jsonl")[-1]["step"] == 10


def refuse(graph, inputs):
    raise RuntimeError("No working C++ compiler found")


@pytest.mark.parametrize("backend", [refuse, pytest.param("inductor", marks=pytest.mark.slow)])
def test_no_compiler_is_one_line(tmp_path, monkeypatch, capsys, backend):
    from torch._inductor import config

    with_backend(monkeypatch, backend)
    chosen = [p for s in (*SHORT, "compile=true") for p in ("--set", s)]
    with config.patch("cpp.cxx", ("/nowhere/g++",)):
        assert short_run([*chosen, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "error:" in line] == said[-1:]
    assert said[-1].startswith("error: torch.compile failed: ")
    assert "o working C++ compiler found" in said[-1]
    assert "--set compile=false" in said[-1]


def test_what_keeps_activations_is_chosen_once():
    with pytest.raises(ValueError, match=r"compile .* activation_checkpointing"):
        with_settings(get_recipe("digits"), ["compile=true", "activation_checkpointing=true"])
