"""Whatever goes wrong, in whatever phase: one line names it, and a resume makes it good."""

import errno
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer.evaluation
import trainer.finish
import trainer.loop
import trainer.report.monitor
import trainer.run
from models.bundle.folder import load_bundle
from models.nets import build_net
from models.spaces import get_space
from tests.trainer.conftest import settings
from tests.trainer.image_data import samples, write_folder, write_tar
from tests.trainer.test_resume import assert_same, files_of_at_most
from trainer.data.batches import Batch
from trainer.data.run_data import calibration_images, read_splits, run_data
from trainer.data.splits import LabelledImages
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.interrupt import Stopped
from trainer.engine.log import read_log
from trainer.recipes.config import read_recipe
from trainer.run import main

pytestmark = pytest.mark.usefixtures("without_plots")


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def one_error(capsys):
    """What was said, less progress."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (error,) = [line for line in said.splitlines() if "error:" in line]
    assert error == said.splitlines()[-1]
    return error


@pytest.fixture
def folder(one_epoch, tmp_path):
    """Of a run that lacks nothing but its end."""
    return Path(shutil.copytree(one_epoch, tmp_path / "run"))


# --------------------------------------------------------------------------------- a full disk


def test_a_full_disk_under_the_bundle_is_one_error_and_leaves_none(folder, capsys):
    with files_of_at_most(100_000):
        assert main(["--resume", str(folder)]) == 2
    error = one_error(capsys)
    assert error.startswith(f"error: cannot write {folder / 'bundle'}: ")
    assert "File too large" in error
    assert not list(folder.glob("*bundle*"))
    assert not list(folder.glob(".bundle*"))


@pytest.mark.parametrize("name", ["report", "frontier.json", "tensorboard"])
def test_a_full_disk_under_anything_else_is_one_error(folder, capsys, monkeypatch, name):
    from torch.utils.tensorboard import SummaryWriter

    from trainer.engine import disk
    from trainer.report import report

    where = {
        "report": (report, "report_page"),
        "frontier.json": (disk.os, "fsync"),
        "tensorboard": (SummaryWriter, "flush"),
    }
    if name == "frontier.json":
        monkeypatch.setattr(trainer.run, "write_whole", lambda *_: None)
    monkeypatch.setattr(*where[name], no_space)
    assert main(["--resume", str(folder)]) == 2
    error = one_error(capsys)
    assert error.startswith(f"error: cannot write {folder / name}: No space left on device; make ")
    assert not list(folder.glob("*.partial"))
    assert (folder / "bundle" / "bundle.json").is_file() == (name != "tensorboard")


# ------------------------------------------------------------- stopped and killed, not in a step


def test_a_signal_in_an_evaluation_stops_it_and_the_resumed_run_makes_it_good(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    chosen = settings("epochs=3", "evaluate_every=1", "ema=0.9")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*chosen, "--out", str(whole)]) == 0
    real, asked = trainer.evaluation.accuracy, []

    def accuracy(*arguments):
        asked.append(1)
        if len(asked) <= 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(trainer.evaluation, "accuracy", accuracy)
    assert main([*chosen, "--out", str(parts)]) == 128 + signal.SIGTERM
    assert len(asked) == 1
    stopped = load_checkpoint(parts)
    assert stopped["evaluation_due"]
    assert main(["--resume", str(parts)]) == 128 + signal.SIGTERM
    assert len(asked) == 2
    assert_same(load_checkpoint(parts), stopped)
    assert main(["--resume", str(parts)]) == 0
    assert_same(load_checkpoint(whole), load_checkpoint(parts))
    rows = [
        [(r["step"], r["rows"]) for r in read_log(run / "log.jsonl") if r["kind"] == "evaluation"]
        for run in (whole, parts)
    ]
    assert len(rows[0]) == 2
    assert rows[0] == rows[1]


def test_an_evaluation_that_is_stopped_leaves_the_net_in_training():
    net = build_net(get_space("nano-vit")).train()

    def images():
        yield Batch(0, 0, torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64))
        raise trainer.evaluation.Abandoned

    with pytest.raises(trainer.evaluation.Abandoned):
        trainer.evaluation.accuracy(net, net.space.smallest, None, images(), "cpu")
    assert net.training


def test_images_to_calibrate_on_are_not_kept_where_nothing_is_calibrated(folder):
    recipe = read_recipe(folder / "recipe.json")
    splits = read_splits(recipe)
    shared = recipe.replace(start="efficientnet-lite0", statistics="start")
    kept = [
        len(run_data(one, splits).calibration)
        for one in (recipe, shared, recipe.replace(space="nano-vit"))
    ]
    assert kept == [1, 0, 0]


def test_the_bundle_is_calibrated_on_the_images_of_the_evaluations(folder, monkeypatch):
    """Also where images lie in runs of neighbours, which another window mixes otherwise."""

    class InRuns(LabelledImages):
        runs = property(lambda self: np.arange(len(self)) // 20)

    recipe = read_recipe(folder / "recipe.json")
    splits = read_splits(recipe)
    splits = replace(splits, train=InRuns(splits.train.images, splits.train.labels))
    seen = {}
    for window in (60, 0):

        def taken(batches, count, window=window):
            seen[window] = calibration_images(batches, count)
            raise Stopped(1)

        recipe = recipe.replace(shuffle_window=window)
        monkeypatch.setattr(trainer.finish, "calibration_images", taken)
        with pytest.raises(Stopped):
            trainer.finish.finish(recipe, splits, folder)
        assert torch.equal(seen[window][0], run_data(recipe, splits).calibration[0])
    assert not torch.equal(seen[60][0], seen[0][0])


@pytest.mark.parametrize("place", ["scores", "save_bundle", "write_report"])
def test_a_signal_at_the_end_leaves_all_or_nothing_of_the_bundle(
    folder, capsys, monkeypatch, place
):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.finish, place, interrupted)
        assert main(["--resume", str(folder)]) == 128 + signal.SIGINT
    last = capsys.readouterr().err.splitlines()[-1]
    command = f"python -m trainer.run --resume {folder}"
    assert last == f"stopped by SIGINT; step 5 is kept; go on with: {command}"
    assert (folder / "bundle").exists() == (place == "write_report")
    assert main(["--resume", str(folder)]) == 0
    load_bundle(folder / "bundle")
    answers = [r for r in read_log(folder / "log.jsonl") if r["kind"] == "answers"]
    assert answers[-1]["step"] == load_checkpoint(folder)["step"]
    assert answers[-1]["rows"]


def test_what_a_kill_leaves_of_a_bundle_is_cleared_away(folder):
    """Between the two renames that put a bundle in the place of another, and with half of one."""
    for left in (".bundle.old-1", ".bundle.partial-1"):
        (folder / left).mkdir()
        (folder / left / "supernet.safetensors").write_bytes(b"half")
    assert main(["--resume", str(folder)]) == 0
    load_bundle(folder / "bundle")
    assert not list(folder.glob(".bundle*"))


# -------------------------------------------------------------------------- data that goes away


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_that_go_away_while_training_are_named(tmp_path, capsys, monkeypatch, kind):
    """(Parquet files stay open, so what was begun can be read to its end.)"""
    data = tmp_path / "data"
    if kind == "folder":
        write_folder(data, {"cat": 40, "dog": 40})
    else:
        for shard in range(8):
            write_tar(data / f"{shard}.tar", samples(range(shard * 10, shard * 10 + 10)))
    real, steps = trainer.loop.train_step, []

    def step(*arguments, **named):
        steps.append(1)
        if len(steps) == 2:
            for file in [path for path in data.rglob("*") if path.is_file()]:
                file.unlink()
        return real(*arguments, **named)

    monkeypatch.setattr(trainer.loop, "train_step", step)
    chosen = ["batch_size=8", "held_out_images=25", "held_out_share=0.1", "data_in_memory=never"]
    chosen += ["epochs=9", "augment.padding=0", "data_workers=0", "shuffle_window=10"]
    assert main([*settings(*chosen), "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    error = one_error(capsys)
    assert error.startswith(f"error: {data}/")
    assert "No such file" in error
