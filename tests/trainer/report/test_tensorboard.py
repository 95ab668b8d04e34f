"""TensorBoard shows what the log holds, every point once, also after a run was killed."""

import os
import shutil
import signal
import sys

import pytest

import trainer.loop
import trainer.report.monitor
import trainer.run
from tests.trainer.conftest import settings
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.log import read_log
from trainer.report.tensorboard import points
from trainer.run import main

SHORT = settings("epochs=2", "evaluate_every=1", "checkpoint_every_s=1000")


@pytest.fixture(autouse=True)
def only_the_loop(monkeypatch):
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    monkeypatch.setattr(trainer.report.monitor, "LOG_EVERY_STEPS", 1)


def shown(folder):
    """Curve -> [(step, value)], as TensorBoard itself reads the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0})
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def logged(folder):
    curves = {}
    for record in read_log(folder / "log.jsonl"):
        for name, value in points(record):
            curves.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    return curves


def test_curves_are_those_of_the_log(tmp_path):
    assert main([*SHORT, "--out", str(tmp_path / "run")]) == 0
    curves = shown(tmp_path / "run")
    assert curves == logged(tmp_path / "run")
    assert [step for step, _ in curves["step/loss"]] == list(range(1, 11))
    groups = {name.partition("/")[0] for name in curves}
    assert groups == {
        "step",
        "probability",
        "loss_drop",
        "generator",
        "entropy",
        "held_out_accuracy",
    }


def test_a_resumed_run_shows_no_step_twice_and_none_that_was_undone(tmp_path, monkeypatch):
    """Stopped at step 4, then killed at 8 without a checkpoint: 5 to 8 are trained again."""
    folder, killed = tmp_path / "run", tmp_path / "killed"
    real_step, steps = trainer.loop.train_step, []

    def counted(*arguments, **named):
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(steps) == 9:
            shutil.copytree(folder, killed)  # what a kill leaves
        return real_step(*arguments, **named)

    monkeypatch.setattr(trainer.loop, "train_step", counted)
    assert main([*SHORT, "--out", str(folder)]) == 128 + signal.SIGTERM
    assert main(["--resume", str(folder)]) == 0
    assert load_checkpoint(killed)["step"] == 4
    assert max(step for step, _ in shown(killed)["step/loss"]) == 8
    assert main(["--resume", str(killed), "--set", "optimizer.learning_rate=0.2"]) == 0
    curves = shown(killed)
    assert curves == logged(killed)
    assert [step for step, _ in curves["step/loss"]] == list(range(1, 11))
    assert curves["step/loss"][:4] == shown(folder)["step/loss"][:4]
    assert curves["step/lr"][5] != shown(folder)["step/lr"][5]


def test_it_can_be_turned_off_and_is_not_imported_then(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    off = settings("tensorboard=false", "epochs=1")
    assert main([*off, "--out", str(tmp_path / "off")]) == 0
    assert not (tmp_path / "off" / "tensorboard").exists()


def test_a_missing_package_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([*settings("epochs=1"), "--out", str(tmp_path / "on")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--set tensorboard=false" in said
