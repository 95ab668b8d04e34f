"""Nothing is lost: runs that are stopped, killed, or run out of disk go on bit for bit."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer.loop
import trainer.run
from tests.trainer.conftest import settings
from trainer.engine.checkpoint import load_checkpoint, save_checkpoint
from trainer.engine.log import read_log
from trainer.report.run_record import read_run
from trainer.run import main

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH = 5


def assert_same(one, two, path=""):
    """Bit for bit, but for how long it took."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key, value in one.items():
            if key != "elapsed_s":
                assert_same(value, two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for index, value in enumerate(one):
            assert_same(value, two[index], f"{path}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    else:
        assert one == two, path


@pytest.fixture
def unfinished(monkeypatch):
    """Stop before the bundle: these tests are about the loop."""
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})


@pytest.fixture
def folder(one_epoch, tmp_path):
    """Of a run of one epoch; a test may go on with it."""
    return Path(shutil.copytree(one_epoch, tmp_path / "run"))


@pytest.mark.parametrize(
    ("sampler", "ema", "number"),
    [("shift", 0.0, signal.SIGTERM), ("shift-direct", 0.9, signal.SIGINT)],
)
@pytest.mark.usefixtures("unfinished")
def test_four_epochs_are_two_and_two_more_bit_for_bit(
    tmp_path, monkeypatch, capsys, sampler, ema, number
):
    """Stopped in the middle of an epoch and at the end of one, by a signal within a step."""
    chosen = settings(f"sampler={sampler}", f"ema={ema}", "epochs=4", "optimizer.clip_norm=1.0")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    real_step, steps, noise = trainer.loop.train_step, [], []

    def noisy_step(*arguments, **named):
        # what a step draws from the generators that no checkpoint holds
        noise.append((torch.rand(()).item(), random.random(), np.random.random()))  # noqa: NPY002
        steps.append(1)
        if len(steps) in stops:
            os.kill(os.getpid(), number)
        return real_step(*arguments, **named)

    monkeypatch.setattr(trainer.loop, "train_step", noisy_step)
    stops = ()
    assert main([*chosen, "--out", str(whole)]) == 0
    expected_noise = noise.copy()
    steps.clear()
    noise.clear()
    stops = (2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 3)
    assert main([*chosen, "--out", str(parts)]) == 128 + number
    last = capsys.readouterr().err.splitlines()[-1]
    command = f"python -m trainer.run --resume {parts}"
    assert last == f"stopped by {number.name}; step {stops[0]} is kept; go on with: {command}"
    assert load_checkpoint(parts)["step"] == stops[0]
    assert main(["--resume", str(parts)]) == 128 + number
    assert load_checkpoint(parts)["step"] == stops[1]
    assert main(["--resume", str(parts)]) == 0
    assert noise == expected_noise
    assert len(set(noise)) == len(noise)
    assert_same(load_checkpoint(whole), load_checkpoint(parts))


@pytest.mark.usefixtures("unfinished")
def test_every_subnet_that_was_trained_is_in_the_log_once(tmp_path, monkeypatch):
    """Killed and stopped between two records of steps, in which the log tells the subnets."""
    monkeypatch.setattr(trainer.report.monitor, "LOG_EVERY_STEPS", 4)
    chosen = settings("epochs=3", "checkpoint_every_s=0", "sampler=sandwich")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    real_step, steps = trainer.loop.train_step, []

    def counted(*arguments, **named):
        steps.append(1)
        if len(steps) == 7:
            shutil.copytree(whole, killed)  # what a kill leaves
        if len(steps) == 3 * STEPS_PER_EPOCH + 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments, **named)

    monkeypatch.setattr(trainer.loop, "train_step", counted)
    assert main([*chosen, "--out", str(whole)]) == 0
    assert main(["--resume", str(killed)]) == 128 + signal.SIGTERM
    assert load_checkpoint(killed)["step"] == 11
    assert main(["--resume", str(killed)]) == 0
    drawn = read_run(whole).trained()
    assert len(drawn) == 4 * 3 * STEPS_PER_EPOCH  # four subnets a step
    assert read_run(killed).trained() == drawn


# ------------------------------------------------------------------------------ checkpoint files


def state_of(step):
    return {"step": step, "weights": torch.full((5000,), float(step))}


def test_a_process_that_dies_at_any_moment_of_a_write_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch
):
    """Copies of the folder stand for what a kill leaves behind, between any two operations."""
    folder = tmp_path / "run"
    folder.mkdir()
    copies = []

    def copying(real):
        def operation(*arguments, **named):
            for do in (lambda: None, lambda: real(*arguments, **named)):
                result = do()
                copies.append(tmp_path / f"copy{len(copies)}")
                shutil.copytree(folder, copies[-1])
            return result

        return operation

    save_checkpoint(folder, state_of(1))
    save_checkpoint(folder, state_of(2))
    monkeypatch.setattr(torch, "save", copying(torch.save))
    monkeypatch.setattr(os, "fsync", copying(os.fsync))
    monkeypatch.setattr(Path, "replace", copying(Path.replace))
    save_checkpoint(folder, state_of(3))
    monkeypatch.undo()
    found = [load_checkpoint(copy)["step"] for copy in copies]
    assert found[0] == 2
    assert found[-1] == 3
    assert found == sorted(found)
    assert any(not (copy / "checkpoint.pt").exists() for copy in copies)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_broken_checkpoint_is_passed_over_in_one_line(tmp_path, capsys, damage):
    save_checkpoint(tmp_path, state_of(1))
    path = save_checkpoint(tmp_path, state_of(2))
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "other":
        content = bytearray(b"not a checkpoint")
    else:
        content = content[: len(content) // 2 if damage == "cut" else 0]
    path.write_bytes(content)
    assert load_checkpoint(tmp_path)["step"] == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "checkpoint.pt cannot be read" in said
    assert "going on from checkpoint.previous.pt" in said
    (tmp_path / "checkpoint.previous.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot .*previous\.pt cannot"):
        load_checkpoint(tmp_path)


@contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("unfinished")
def test_a_full_disk_is_one_error_and_leaves_the_checkpoint_before(folder, capsys):
    before = load_checkpoint(folder)
    capsys.readouterr()
    with files_of_at_most(50_000):
        assert main(["--resume", str(folder), "--set", "epochs=2"]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(errors) == 1
    assert f"cannot write {folder / 'checkpoint.pt'}: File too large" in errors[0]
    assert not list(folder.glob("*.partial"))
    assert_same(load_checkpoint(folder), before)
    assert main(["--resume", str(folder)]) == 0
    assert load_checkpoint(folder)["step"] == 2 * STEPS_PER_EPOCH


@pytest.mark.usefixtures("unfinished")
def test_a_full_disk_under_the_log_is_one_error_that_names_it(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(trainer.report.monitor, "LOG_EVERY_STEPS", 1)
    with files_of_at_most(3000):  # recipe.json fits, a log with a record of each step does not
        assert main([*settings("epochs=1"), "--out", str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert str(folder) in said
    assert "File too large" in said
    assert main(["--resume", str(folder)]) == 0
    steps = [record["step"] for record in read_log(folder / "log.jsonl")]
    assert max(steps) == STEPS_PER_EPOCH


@pytest.mark.usefixtures("unfinished")
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(folder, capsys):
    before = load_checkpoint(folder)
    wild = ["epochs=4", "optimizer.learning_rate=1e30", "checkpoint_every_s=0"]
    wild = [part for setting in wild for part in ("--set", setting)]
    assert main(["--resume", str(folder), *wild]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the loss ")
    assert "not a finite number at step " in said
    assert "optimizer.learning_rate" in said
    for tensor in load_checkpoint(folder)["net"].values():
        assert torch.isfinite(tensor).all()
    assert load_checkpoint(folder)["step"] >= before["step"]


# ------------------------------------------------------------------------ what is said at a stop


@pytest.mark.parametrize("signals", [1, 2, 3])
@pytest.mark.usefixtures("unfinished")
def test_a_write_in_progress_ends_before_the_run_does(tmp_path, capsys, monkeypatch, signals):
    """Ctrl-C again, while the checkpoint is written that the first one has asked for."""
    folder = tmp_path / "a folder"
    real_save, real_step = torch.save, trainer.loop.train_step

    def save(*arguments, **named):
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
        real_save(*arguments, **named)

    def step(*arguments, **named):
        monkeypatch.setattr(torch, "save", save)
        os.kill(os.getpid(), signal.SIGINT)
        return real_step(*arguments, **named)

    monkeypatch.setattr(trainer.loop, "train_step", step)
    assert main([*settings("epochs=4"), "--out", str(folder)]) == 128 + signal.SIGINT
    said = capsys.readouterr().err.splitlines()[-1]
    command = f"python -m trainer.run --resume '{folder}'"
    assert said == f"stopped by SIGINT; step 1 is kept; go on with: {command}"
    assert load_checkpoint(folder)["step"] == 1
    assert not list(folder.glob("*.partial"))


@pytest.mark.usefixtures("unfinished")
def test_a_second_signal_in_a_step_ends_the_run_and_names_what_the_disk_holds(
    folder, capsys, monkeypatch
):
    def step(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(trainer.loop, "train_step", step)
    assert main(["--resume", str(folder), "--set", "epochs=2"]) == 128 + signal.SIGINT
    assert "; step 5 is kept; go on with: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("unfinished")
def test_a_loss_that_is_no_number_before_anything_is_kept_says_so(tmp_path, capsys):
    chosen = settings("generator.pretrain_steps=0", "optimizer.learning_rate=1e30")
    assert main([*chosen, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no finite number" in said or "not a finite number" in said
    assert "; nothing is kept yet; begin again with: " in said


@pytest.mark.usefixtures("unfinished")
def test_a_run_without_a_checkpoint_begins_anew_and_keeps_its_old_log(folder, capsys):
    for checkpoint in folder.glob("checkpoint*"):
        checkpoint.unlink()
    old = (folder / "log.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["--resume", str(folder)]) == 0
    assert f"{folder} has no checkpoint: the run begins anew" in capsys.readouterr().err
    assert (folder / "log.1.jsonl").read_bytes() == old
    starts = [record for record in read_log(folder / "log.jsonl") if record["kind"] == "start"]
    assert len(starts) == 1


@pytest.mark.usefixtures("unfinished")
def test_the_generator_is_kept_while_it_learns_budgets(tmp_path, capsys, monkeypatch):
    chosen = settings("epochs=1", "generator.pretrain_steps=8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*chosen, "--out", str(whole)]) == 0
    assert "the generator learns budgets: step 1/8" in capsys.readouterr().err
    real, steps = trainer.report.monitor.Monitor.pretraining, []

    def pretraining(monitor, step):
        steps.append(step)
        if step == 3 and len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        real(monitor, step)

    monkeypatch.setattr(trainer.report.monitor.Monitor, "pretraining", pretraining)
    assert main([*chosen, "--out", str(parts)]) == 128 + signal.SIGINT
    assert "; step 0 is kept; go on with: " in capsys.readouterr().err.splitlines()[-1]
    assert main(["--resume", str(parts)]) == 0
    assert steps == list(range(1, 9))
    assert_same(load_checkpoint(whole), load_checkpoint(parts))


@pytest.mark.usefixtures("unfinished")
def test_a_relative_path_of_data_is_found_from_another_folder(tmp_path, capsys, monkeypatch):
    from tests.trainer.image_data import write_folder

    write_folder(tmp_path / "photos", {"cat": 120, "dog": 120})
    monkeypatch.chdir(tmp_path)
    chosen = settings("batch_size=8", "epochs=1")
    assert main([*chosen, "--data", "photos", "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", str(tmp_path / "run")]) == 0
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert main(["--resume", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'photos'} does not exist: give --data again" in said
    assert main(["--resume", str(tmp_path / "run"), "--data", "../moved"]) == 0


# --------------------------------------------------------------------------- what may be changed


@pytest.mark.usefixtures("unfinished")
def test_a_resumed_run_keeps_what_its_checkpoint_is_made_of(folder, capsys):
    written = (folder / "recipe.json").read_text()
    for fixed in ("seed=5", "space=nano-vit", "batch_size=128", "sampler_options.groups=3"):
        assert main(["--resume", str(folder), "--set", fixed]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"keeps its {fixed.partition('=')[0]};" in said
        assert (folder / "recipe.json").read_text() == written
    free = ["epochs=2", "optimizer.learning_rate=0.01", "precision=bf16"]
    free = [part for setting in free for part in ("--set", setting)]
    assert main(["--resume", str(folder), *free]) == 0
    assert load_checkpoint(folder)["step"] == 2 * STEPS_PER_EPOCH


@pytest.mark.usefixtures("unfinished")
def test_what_may_change_does_in_optimizers_too(tmp_path):
    """Their state holds the settings that they were made with."""
    folder = tmp_path / "run"
    assert main([*settings("epochs=1", "sampler=shift"), "--out", str(folder)]) == 0
    free = ["epochs=2", "optimizer.weight_decay=0.25", "sampler_options.learning_rate=0.125"]
    free = [part for setting in free for part in ("--set", setting)]
    assert main(["--resume", str(folder), *free]) == 0
    state = load_checkpoint(folder)
    assert [g["weight_decay"] for g in state["optimizer"]["param_groups"]] == [0.25, 0.0]
    (group,) = state["sampler"]["distribution"]["optimizer"]["param_groups"]
    assert group["lr"] == 0.125


@pytest.mark.usefixtures("unfinished")
def test_a_checkpoint_of_other_data_is_refused(folder, tmp_path, capsys):
    from PIL import Image

    images = tmp_path / "images"
    for label in "ab":
        (images / label).mkdir(parents=True)
        for number in range(400):
            Image.new("RGB", (16, 16), (number % 256, 0, 0)).save(images / label / f"{number}.png")
    written = (folder / "recipe.json").read_text()
    assert main(["--resume", str(folder), "--data", str(images)]) == 2
    assert (folder / "recipe.json").read_text() == written
    said = capsys.readouterr().err.splitlines()[-1]
    assert "was trained on 359 + 1,079 images of 10 classes (0 to 9)" in said
    assert "2 classes (a to b)" in said


# ------------------------------------------------------------------------------- real processes


class Running:
    """``python -m trainer.run`` in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "trainer.run", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def wait_for(self, path, text="", every_s=0.001):
        end = time.monotonic() + 100
        while not (path.exists() and (not text or text in path.read_text())):
            assert time.monotonic() < end, f"{path} did not come"
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(every_s)


def test_sigterm_leaves_a_checkpoint_and_its_number(tmp_path):
    folder = tmp_path / "run"
    with Running(*settings("epochs=500", "tensorboard=false"), "--out", str(folder)) as running:
        # the log begins before the first step; a signal in between leaves nothing to resume
        running.wait_for(folder / "log.jsonl", '"kind":"step"', every_s=0.05)
        running.process.send_signal(signal.SIGTERM)
        _, said = running.process.communicate(timeout=100)
    assert running.process.returncode == 128 + signal.SIGTERM, said
    last = said.splitlines()[-1]
    step = load_checkpoint(folder)["step"]
    assert last.startswith(f"stopped by SIGTERM; step {step} is kept; go on with: python -m ")
    assert "Traceback" not in said
    assert load_checkpoint(folder)["step"] >= 1
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written_and_at_another_moment(tmp_path):
    """Every step writes one; the run that goes on ends as one that was left alone."""
    chosen = settings("epochs=4", "checkpoint_every_s=0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*chosen, "--out", str(killed)]
    for awaited in ("checkpoint.partial", "log.jsonl"):
        with Running(*arguments) as running:
            running.wait_for(killed / "checkpoint.pt")
            running.wait_for(killed / awaited)
        assert running.process.returncode == -signal.SIGKILL
        assert load_checkpoint(killed)["step"] >= 0
        arguments = ["--resume", str(killed)]
    assert main(arguments) == 0
    assert main([*chosen, "--out", str(whole)]) == 0
    assert_same(load_checkpoint(whole), load_checkpoint(killed))
    assert (killed / "bundle" / "bundle.json").is_file()
    steps = [r["step"] for r in read_log(killed / "log.jsonl") if r["kind"] == "groups"]
    assert steps == sorted(set(steps))
