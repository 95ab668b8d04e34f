"""The training program on images that it decodes as it needs them."""

import json
import os
import signal

import pytest
import torch

from tests.trainer.image_data import encoded_image, samples, write_folder, write_tar
from trainer.engine.checkpoint import load_checkpoint
from trainer.run import main

SHORT = ["epochs=2", "generator.pretrain_steps=2", "evaluate_every=1", "threads=1"]
SHORT += ["evaluation_budgets=3", "shift_every=4", "calibration_batches=1", "warm_up_share=0"]
SMALL = ["batch_size=8", "data_in_memory=never", "augment.mixup=0.5", "augment.padding=0"]
SMALL += ["augment.crop_area=0.5", "shuffle_window=20", "data_workers=1"]


def settings(*more):
    return [part for setting in (*SHORT, *more) for part in ("--set", setting)]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def without_the_end(monkeypatch):
    import trainer.run

    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})


def same_weights(one, other):
    one, other = load_checkpoint(one), load_checkpoint(other)
    return all(torch.equal(tensor, other["net"][key]) for key, tensor in one["net"].items())


def test_decoding_as_needed_changes_no_number(tmp_path, capsys):
    for where in ("always", "never"):
        chosen = settings(f"data_in_memory={where}", "epochs=1", "batch_size=256")
        assert main([*chosen, "--out", str(tmp_path / where)]) == 0
    assert (
        "decoded as they are needed: held-out 143, test 359, train 1,295" in capsys.readouterr().err
    )
    assert same_weights(tmp_path / "always", tmp_path / "never")


def test_a_run_on_tars_stopped_in_an_epoch_goes_on_bit_for_bit(tmp_path, monkeypatch):
    import trainer.loop

    for shard in range(3):
        write_tar(tmp_path / "data" / f"{shard}.tar", samples(range(shard * 40, shard * 40 + 40)))
    chosen = [*settings(*SMALL, "held_out_images=30"), "--data", str(tmp_path / "data")]
    assert main([*chosen, "--out", str(tmp_path / "whole")]) == 0
    real_step, calls = trainer.loop.train_step, []

    def step_then_signal(*arguments, **named):
        calls.append(1)
        if len(calls) == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments, **named)

    monkeypatch.setattr(trainer.loop, "train_step", step_then_signal)
    parts = tmp_path / "parts"
    assert main([*chosen, "--out", str(parts)]) == 128 + signal.SIGTERM
    assert load_checkpoint(parts)["step"] == 13
    monkeypatch.setattr(trainer.loop, "train_step", real_step)
    assert main(["--resume", str(parts)]) == 0
    assert same_weights(tmp_path / "whole", parts)
    start = next(record for record in log_of(parts) if record["kind"] == "start")
    assert start["images"][1] == 30


def test_a_broken_image_stops_the_run_with_its_name_or_is_counted(tmp_path, capsys):
    layout = {"train/cat": 60, "train/dog": 60, "test/cat": 1, "test/dog": 1}
    write_folder(tmp_path / "data", layout)
    broken = tmp_path / "data" / "train" / "dog" / "5.png"
    broken.write_bytes(encoded_image(65)[:50])
    chosen = [*settings(*SMALL, "held_out_images=30"), "--data", str(tmp_path / "data")]
    assert main([*chosen, "--out", str(tmp_path / "refused")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {broken}: damaged PNG file")

    chosen += ["--set", "skip_broken=true"]
    assert main([*chosen, "--out", str(tmp_path / "skipped")]) == 0
    records = [r for r in log_of(tmp_path / "skipped") if r["kind"] == "broken"]
    assert [record["count"] for record in records] == [1]
    assert records[0]["images"][0].startswith(f"{broken}: damaged PNG")
    said = "".join(capsys.readouterr().err.split())  # the display wraps its lines
    assert f"skipped{broken}" in said
    assert "1brokenimagessofar" in said
