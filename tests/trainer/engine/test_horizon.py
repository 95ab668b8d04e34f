"""A run that may spend so much compute spends it, and its schedules end with it."""

import json

import numpy as np
import pytest
import torch

import trainer.loop
import trainer.run
from models.nets import build_net
from models.spaces import get_space
from tests.one_hot import relax
from tests.trainer.conftest import settings
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.horizon import (
    Horizon,
    forward_flops,
    horizon_of,
    masked_and_sliced_flops,
    mean_step_flops,
    pass_flops,
    run_step_flops,
    step_compute,
)
from trainer.engine.log import read_log
from trainer.engine.optim import learning_rate_at
from trainer.engine.state import TrainingState
from trainer.recipes.config import get_recipe
from trainer.recipes.settings import Optimizer, SamplerOptions
from trainer.samplers import build_sampler
from trainer.samplers.fixed.static_tilt import tilted

SPACE = get_space("nano-cnn")


def test_masks_cost_the_whole_supernet_and_a_step_three_passes():
    small = SPACE.smallest
    assert pass_flops(SPACE, small, 5) == SPACE.min_flops + 5
    assert pass_flops(SPACE, relax(SPACE, small), 0) == SPACE.max_flops
    subnets = [small, SPACE.largest]
    spent = step_compute(SPACE, subnets, 10, SamplerOptions())
    assert spent == 3 * 10 * (SPACE.min_flops + SPACE.max_flops)
    # once in a step what it costs beside its passes, once in each pass what that costs beside
    overhead = SamplerOptions(step_flops=7, pass_flops=5)
    assert step_compute(SPACE, subnets, 10, overhead) - spent == 3 * 10 * (7 + 2 * 5)
    taught = step_compute(SPACE, subnets, 10, overhead, asks_largest=True)
    assert taught - step_compute(SPACE, subnets, 10, overhead) == 10 * (SPACE.max_flops + 5)
    light = overhead.replace(forward_weight=0.5)
    assert forward_flops(SPACE, small, light) == round((SPACE.min_flops + 5) / 2)
    for name, draws in (("uniform-budget", 1), ("sandwich", 4)):
        plain, more = (
            masked_and_sliced_flops(get_recipe("digits"), build_sampler(name, SPACE, options))
            for options in (SamplerOptions(), overhead)
        )
        assert more - plain == pytest.approx(7 + draws * 5)


@pytest.mark.parametrize("steps", [1, 7, 40, 42, 1000])
def test_a_learning_rate_rises_to_its_peak_and_not_beyond(steps):
    """Also where the warm-up is not of whole steps, or the position between two."""
    options = Optimizer(learning_rate=0.1, warm_up_share=0.1)
    rates = [learning_rate_at(step / 4, steps, options) for step in range(4 * steps)]
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert max(rates) <= 0.1


def test_a_horizon_is_of_steps_or_of_a_budget():
    steps, compute = Horizon(100, 10), Horizon(100, 10, budget=1000.0)
    assert (steps.position(40, 999), compute.position(1, 400)) == (40, 40)
    assert steps.is_over(100, 0)
    assert not steps.is_over(99, 10**9)
    assert compute.is_over(3, 1000)
    assert not compute.is_over(10**6, 999)
    assert (steps.foreseen(7, 0), compute.foreseen(0, 0)) == (100, 100)
    assert compute.foreseen(30, 500) == 60, "half of the budget, so as many steps again"


def test_a_budget_can_have_a_bound_of_epochs():
    """A run ends with what comes first, and its schedules with it."""
    recipe = get_recipe("digits").replace(epochs=20, training_hours=0.5, most_epochs=10)
    horizon = horizon_of(recipe, build_sampler("uniform-arch", SPACE, SamplerOptions()), 10)
    assert horizon.steps == 100
    assert horizon.position(50, 100.0) == 50, "a fast machine"
    assert horizon.position(50, 1350.0) == 75, "a slow one"
    assert horizon.position(200, 1800.0) == 100
    assert horizon.is_over(100, 100.0)
    assert horizon.is_over(50, 1800.0)
    assert not horizon.is_over(99, 1799.0)
    by_steps = recipe.replace(training_hours=0.0)
    assert horizon_of(by_steps, build_sampler("sandwich", SPACE, SamplerOptions()), 10).steps == 100


@pytest.mark.parametrize("name", ["uniform-budget", "sandwich", "uniform-arch"])
def test_the_steps_of_a_compute_budget_are_foreseen(name):
    recipe = get_recipe("digits").replace(sampler=name, compute=1e10)
    recipe = recipe.replace(generator=recipe.generator.replace(masked_every=1000))
    sampler = build_sampler(name, SPACE, SamplerOptions())
    horizon = horizon_of(recipe, sampler, 20)
    mean = mean_step_flops(sampler).sliced
    assert horizon.steps == pytest.approx(1e10 / (3 * recipe.batch_size * mean), rel=0.02)


def test_steps_of_a_tilt_that_moves_are_those_of_the_whole_run():
    """At known cost: by steps it is the mean over the run, by what is spent the harmonic mean."""
    options = SamplerOptions(tilt=(-6.0, 4.0), jitter=False)
    sampler = build_sampler("static-tilt", SPACE, options)
    recipe = get_recipe("digits").replace(sampler="static-tilt", sampler_options=options)
    recipe = recipe.replace(generator=recipe.generator.replace(masked_every=1_000_000))
    shares = [tilted(8, options.tilt, 0.0, place / 200) for place in range(201)]
    costs = np.array(shares) @ np.array(sampler.groups)
    mean, harmonic = float(costs.mean()), float(1 / (1 / costs).mean())
    assert costs[0] < 0.8 * harmonic < 0.9 * 0.8 * mean
    assert run_step_flops(recipe, sampler).sliced == pytest.approx(mean, rel=0.02)
    compute = 3.0 * recipe.batch_size * harmonic * 500
    spent = recipe.replace(compute=compute)
    assert horizon_of(spent, sampler, 20).steps == pytest.approx(500, rel=0.02)
    assert run_step_flops(spent, sampler).sliced == pytest.approx(harmonic, rel=0.02)


@pytest.mark.usefixtures("without_plots")
def test_a_run_ends_with_its_compute_and_goes_on_after_a_stop(tmp_path, monkeypatch):
    large = json.dumps(SPACE.arch_to_json(SPACE.largest))
    compute = 3 * 64 * SPACE.max_flops * 12
    chosen = settings(f"compute={compute}", "epochs=1000", "optimizer.warm_up_share=0.25")
    assert trainer.run.main([*chosen, "--arch", large, "--out", str(tmp_path / "run")]) == 0
    state = load_checkpoint(tmp_path / "run")
    assert (state["step"], state["compute"]) == (12, compute)
    last = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "step"][-1]
    assert last["compute"] == compute
    assert last["lr"] < 0.01  # the cosine is at its end
    (row,) = json.loads((tmp_path / "run" / "frontier.json").read_text())
    assert row["flops"] == SPACE.max_flops

    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    more = ["--resume", str(tmp_path / "run"), "--set", f"compute={2 * compute}"]
    assert trainer.run.main(more) == 0
    assert load_checkpoint(tmp_path / "run")["step"] == 24


def test_a_run_of_hours_ends_by_the_clock_with_all_that_a_run_keeps(tmp_path, monkeypatch):
    """On a clock that a step moves by two seconds."""
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    monkeypatch.setattr(TrainingState, "total_s", property(lambda state: 2.0 * state.step))
    run = tmp_path / "run"
    chosen = settings(f"training_hours={60 / 3600}", "epochs=1000", "generator.pretrain_steps=1")
    assert trainer.run.main([*chosen, "--out", str(run)]) == 0
    assert load_checkpoint(run)["step"] == 30
    last = [r for r in read_log(run / "log.jsonl") if r["kind"] == "step"][-1]
    assert last["step"] == 30
    assert last["lr"] < 0.01  # the cosine is at its end
    assert trainer.run.main(["--resume", str(run)]) == 0
    assert load_checkpoint(run)["step"] == 30, "its hours are over"


def test_hours_do_not_count_what_comes_before_the_first_step(tmp_path, monkeypatch):
    def slow_pretraining(state, *_):
        state.started_at -= 1000.0

    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    monkeypatch.setattr(trainer.loop, "pretrain_generator", slow_pretraining)
    chosen = settings(f"training_hours={0.5 / 3600}", "epochs=1000")
    assert trainer.run.main([*chosen, "--out", str(tmp_path / "run")]) == 0
    assert load_checkpoint(tmp_path / "run")["step"] > 0


def test_a_run_has_one_length(tmp_path, capsys):
    chosen = settings("training_hours=1", "compute=1e15")
    assert trainer.run.main([*chosen, "--out", str(tmp_path / "run")]) == 2
    assert "both say how long" in capsys.readouterr().err


def test_only_the_arch_that_trains_alone_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    small = json.dumps(SPACE.arch_to_json(SPACE.smallest))
    chosen = settings("epochs=1", "optimizer.weight_decay=0")
    assert trainer.run.main([*chosen, "--arch", small, "--out", str(tmp_path / "run")]) == 0
    torch.manual_seed(0)
    state = load_checkpoint(tmp_path / "run")["net"]
    untrained = build_net(SPACE).state_dict()
    outside = 0
    for weight in SPACE.weights:
        if weight.block is not None and not weight.block.present(SPACE.smallest):
            assert torch.equal(state[weight.name], untrained[weight.name]), weight.name
            outside += 1
    assert outside


def test_an_arch_of_another_space_is_refused(tmp_path, capsys):
    arguments = ["--arch", '{"depth": 99}', "--out", str(tmp_path / "run")]
    assert trainer.run.main(arguments) == 2
    assert "resolution is missing" in capsys.readouterr().err
