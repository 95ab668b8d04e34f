"""The training program as a user runs it, on a few steps of digits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models.bundle import load_bundle
from trainer.checkpoint import load_checkpoint
from trainer.finish import undominated
from trainer.run import main

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["epochs=2", "generator.pretrain_steps=5", "evaluate_every=1", "answer_budgets=6"]
SHORT += ["threads=1", "evaluation_budgets=3", "shift_every=4", "calibration_batches=2"]


def settings(*more):
    return [part for setting in (*SHORT, *more) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*settings(), "--out", str(folder), "--json"]) == 0
    return folder


def test_a_run_leaves_what_it_promises(finished):
    bundle = load_bundle(finished / "bundle")
    assert bundle.name == "digits"
    assert len(bundle.frontier) == 3
    assert all(row.flops <= row.budget_flops for row in bundle.frontier)
    rows = json.loads((finished / "frontier.json").read_text())
    assert [row["id"] for row in rows] == [
        bundle.space.arch_id(row.arch) for row in bundle.frontier
    ]
    assert (finished / "report" / "report.md").is_file()
    kinds = {json.loads(x)["kind"] for x in (finished / "log.jsonl").read_text().splitlines()}
    assert {"start", "step", "groups", "generator", "evaluation"} <= kinds


@pytest.mark.parametrize("sampler", ["shift", "shift-direct"])
def test_two_epochs_are_one_and_one_more_bit_for_bit(tmp_path, monkeypatch, sampler):
    """Stopped in the middle by the flag that a signal sets, and resumed."""
    import trainer.run

    chosen = settings(f"sampler={sampler}", "warm_up_share=0")
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*chosen, "--out", str(whole)]) == 0
    real_step, calls = trainer.run.train_step, []

    def step_then_signal(*arguments, **named):
        calls.append(1)
        if len(calls) == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments, **named)

    monkeypatch.setattr(trainer.run, "train_step", step_then_signal)
    assert main([*chosen, "--out", str(parts)]) == 128 + signal.SIGTERM
    assert load_checkpoint(parts)["step"] == 23
    monkeypatch.setattr(trainer.run, "train_step", real_step)
    assert main(["--resume", str(parts)]) == 0
    one, two = load_checkpoint(whole), load_checkpoint(parts)
    for name in ("net", "generator", "before"):
        for key, tensor in one[name].items():
            assert torch.equal(tensor, two[name][key]), (name, key)
    assert torch.equal(one["sampler"]["logits"], two["sampler"]["logits"])
    assert torch.equal(one["rng"], two["rng"])


def test_kill_9_loses_nothing_that_was_checkpointed(tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "trainer.run", *settings("epochs=500"), "--out", str(folder)]
    command += ["--set", "checkpoint_every_s=0.2", "--set", "evaluate_every=1000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (folder / "checkpoint.pt").exists():
            assert time.monotonic() < end, "no checkpoint came"
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
    assert load_checkpoint(folder)["step"] > 0


def test_mistakes_are_one_line(tmp_path, finished, capsys):
    cases = [
        (["--recipe", "digit"], "did you mean 'digits'"),
        (["--set", "epoch=1"], "nearest: epochs"),
        (["--set", "epochs=many"], "epochs takes an integer"),
        (["--set", "epochs=0"], "at least 1"),
        (["--set", "sampler=shfit", "--out", str(tmp_path / "a")], "did you mean 'shift'"),
        (["--data", str(tmp_path / "none")], "does not exist"),
        (["--out", str(finished)], "resume it with"),
        (["--resume", str(tmp_path)], "holds no run"),
    ]
    for arguments, words in cases:
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert words in said.splitlines()[-1], said


def test_a_broken_recipe_is_named(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text("{")
    assert main(["--resume", str(tmp_path)]) == 2
    assert "recipe.json is no JSON" in capsys.readouterr().err


def test_answers_that_a_smaller_one_clearly_beats_are_dropped():
    candidates = [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    accuracy = {"a": 0.5, "b": 0.8, "c": 0.7, "d": 0.797}
    kept = undominated(candidates, accuracy, 0.005)
    assert kept == [(1, "a"), (2, "b"), (4, "d")]
