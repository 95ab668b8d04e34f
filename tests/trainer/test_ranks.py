"""Several processes are one run: the same numbers, one voice, one end."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from models.bundle.folder import load_bundle
from tests.conftest import TEMPLATES
from tests.trainer.short_runs import short_run
from trainer.data.run_data import read_splits
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.log import read_log
from trainer.engine.task import micro_batches
from trainer.finish import finish
from trainer.job import build_parser, check_device, check_world_size, find_job
from trainer.ranks import Ranks
from trainer.recipes.config import get_recipe, read_recipe, with_settings
from trainer.run import main

ROOT = Path(__file__).resolve().parents[2]
COMMON = [
    "epochs=1",
    "generator.pretrain_steps=5",
    "batch_size=16",
    "held_out_images=1110",
    "evaluate_every=0",
    "tensorboard=false",
    "calibration_batches=1",
    "shift_every=4",
    "warm_up_share=0",
    "sampler_options.learning_rate=0.005",
    "threads=1",
]
STEPS = 20
PATIENCE_S = 280  # on a machine that does other things too
pytestmark = pytest.mark.timeout(300)
# Rounding grows with the learning rate: this is small.
CNN = ["optimizer.learning_rate=0.001"]
VIT = ["space=nano-vit", "optimizer.name=adamw", "optimizer.learning_rate=0.001"]
MIXED = ["augment.mixup=0.8", "augment.cutmix=1.0", "drop_path=0.2"]
RUNS = {
    # every step masked, B moves by gradients through the generator, BatchNorm
    "cnn shift": [*CNN, *MIXED, "generator.masked_every=1"],
    # every other step sliced, B moves by measured drops
    "vit direct": [
        *VIT,
        *MIXED,
        "sampler=shift-direct",
        "generator.masked_every=2",
        "optimizer.clip_norm=1.0",
    ],
}
MORE_RUNS = {
    "cnn direct": [*CNN, *MIXED, "sampler=shift-direct", "generator.masked_every=2"],
    "cnn sandwich": [*CNN, "drop_path=0.2", "sampler=sandwich"],
    "vit shift": [*VIT, *MIXED, "generator.masked_every=1", "ema=0.9", "accumulate=2"],
    "vit sandwich": [*VIT, "sampler=sandwich", "accumulate=3"],
}


class Torchrun:
    """``torchrun --nproc-per-node 2 ...``; it and what it started ends with the block."""

    def __init__(self, *module):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *module]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for started in self.ranks():
            started.kill()
        self.process.kill()
        self.process.communicate()

    def ranks(self):
        """In order. What it starts is in sessions of their own: no signal to a group reaches it."""
        try:
            started = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return sorted(
            (p for p in started if "RANK" in p.environ()), key=lambda p: p.environ()["RANK"]
        )


def arguments(folder, settings):
    return [p for s in (*COMMON, *settings) for p in ("--set", s)] + ["--out", str(folder)]


def in_two_processes(folder, runs):
    """Do some runs under torchrun: (arguments, mischief) each. Statuses per rank, and stderr."""
    described = json.dumps([{"arguments": a, "mischief": mischief} for a, mischief in runs])
    file = folder / "statuses"
    command = [sys.executable, "-m", "tests.trainer.short_runs", described, str(file)]
    ended = subprocess.run(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(file.read_text()), ended.stderr


def assert_near(one, two, what=""):
    """Within 1e-4: what is a number, in the same places.

    After 20 steps last bits have grown to 7e-6, differently on every processor; a gradient that is
    summed or averaged wrongly makes 1e-2.
    """
    if isinstance(one, dict):
        assert one.keys() == two.keys(), what
        for key, value in one.items():
            assert_near(value, two[key], f"{what}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), what
        for place, value in enumerate(one):
            assert_near(value, two[place], f"{what}[{place}]")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4, msg=lambda m: f"{what}: {m}")
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4), what
    else:
        assert one == two, what


def assert_same_run(one, two):
    """The same budgets and archs in every step; losses and weights within 1e-4."""
    logs = [
        [r for r in read_log(folder / "log.jsonl") if r["kind"] in ("step", "groups")]
        for folder in (one, two)
    ]
    for record, other in zip(*logs, strict=True):
        for rounded_or_timed in ("elapsed_s", "images_per_s", "drawn_losses"):
            record.pop(rounded_or_timed, None)
            other.pop(rounded_or_timed, None)
        if record["kind"] == "groups":
            # Adam divides by the size of gradients that are hardly more than rounding
            probabilities = [r.pop("probabilities") for r in (record, other)]
            assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-3)
        assert record.get("drawn_flops") == other.get("drawn_flops")
        assert_near(record, other)
    states = [load_checkpoint(folder) for folder in (one, two)]
    assert states[0]["step"] == states[1]["step"] == STEPS
    for part in ("net", "generator", "before", "average", "rng"):
        assert_near(states[0][part], states[1][part], part)


@pytest.fixture(scope="module")
def did():
    """What two processes did, one run after another, as they take their time to start.

    The runs' folder, their statuses per rank, and what was said. All processes of a test session
    together do it once.
    """
    folder = Path(os.environ[TEMPLATES]) / "two-processes"
    folder.mkdir(exist_ok=True)
    file = folder / "done.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(json.dumps(_two_processes(folder)))
        return folder, *json.loads(file.read_text())


def _two_processes(folder):
    term = {"rank": 1, "step": 7, "signal": int(signal.SIGTERM)}
    runs = [(arguments(folder / name, RUNS[name]), None) for name in RUNS]
    runs += [
        (arguments(folder / "stopped", CNN), term),
        (arguments(folder / "broken", CNN), {"rank": 1, "step": 3, "nan": 1}),
        (arguments(folder / "odd", ["batch_size=15"]), None),
        (["--resume", str(folder / "none")], None),
        (["--dry-run"], None),
        (["--resume", str(folder / "stopped")], {"rank": 0, "step": 6, "signal": signal.SIGINT}),
    ]
    return in_two_processes(folder, runs)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(tmp_path, did, name):
    folder, statuses, said = did
    number = list(RUNS).index(name)
    assert [of_rank[number] for of_rank in statuses] == [0, 0], said
    assert short_run(arguments(tmp_path, RUNS[name])) == 0
    assert_same_run(tmp_path, folder / name)


@pytest.mark.slow
def test_two_processes_do_what_one_does_in_all_ways_to_train(tmp_path):
    wanted = [(arguments(tmp_path / f"{name} 2", MORE_RUNS[name]), None) for name in MORE_RUNS]
    statuses, said = in_two_processes(tmp_path, wanted)
    assert statuses == [[0] * len(MORE_RUNS)] * 2, said
    for name, settings in MORE_RUNS.items():
        assert short_run(arguments(tmp_path / f"{name} 1", settings)) == 0
        assert_same_run(tmp_path / f"{name} 1", tmp_path / f"{name} 2")


def test_a_number_of_processes_that_does_not_divide_a_batch_is_refused():
    recipe = with_settings(get_recipe("digits"), ["batch_size=12"])
    for world_size in (1, 2, 3, 4, 6, 12):
        check_world_size(recipe, world_size)
    with pytest.raises(ValueError, match=r"5 processes .* 12; .* 1, 2, 3, 4, 6, 12 processes"):
        check_world_size(recipe, 5)
    # three images of a rank would find other partners than in one process
    mixed = with_settings(recipe, ["augment.mixup=0.8"])
    with pytest.raises(ValueError, match=r"4 processes .* 1, 2, 3, 6 processes"):
        check_world_size(mixed, 4)


def test_processes_that_cannot_have_a_gpu_each_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, processes in (("cpu", 5), ("cuda", 1), ("cuda", 2), ("cuda:1", 1)):
        check_device(device, processes)
    for device, processes in (("cuda", 3), ("cuda:2", 1), ("cuda:1", 2), ("gpu", 1)):
        with pytest.raises(ValueError, match=f"{device}.*(cuda|: 3, it has 2)"):
            check_device(device, processes)


@pytest.mark.parametrize("count", [1, 3, 4, 20])
def test_parts_of_a_batch_know_which_images_they_have(count):
    batch = torch.arange(24.0)
    seen = []
    weights = 0.0
    for rank in range(3):
        ranks = Ranks(rank, 3)
        mine = batch[rank::3]
        for part in micro_batches(mine, mine, count, ranks):
            assert torch.equal(batch[part.share.rows], part.images)
            assert part.share.count == len(batch)
            seen += part.images.tolist()
            weights += part.weight
    assert sorted(seen) == batch.tolist()
    assert weights == pytest.approx(3)


def test_one_voice_one_end(tmp_path, did):
    """Signals and mistakes in one process are those of all."""
    folder, statuses, said = did
    assert [of_rank[len(RUNS) :] for of_rank in statuses] == [[143, 2, 2, 2, 2, 130]] * 2, said
    errors = [line for line in said.splitlines() if "error:" in line]
    assert [e.partition("error: ")[2][:30] for e in errors] == [
        "the loss is not a finite number"[:30],
        "2 processes cannot share a bat",
        f"{folder / 'none'} holds no run"[:30],
        "--dry-run tries a recipe in on",
    ], said
    assert said.count("SIGTERM; step 7 is kept; go on with: torchrun ... -m trainer.run") == 1
    assert said.count("stopped by SIGINT") == 1
    assert load_checkpoint(folder / "broken")["step"] == 0, "what the generator had learnt alone"
    stopped = tmp_path / "stopped"
    shutil.copytree(folder / "stopped", stopped)
    assert load_checkpoint(stopped)["step"] == 13
    # and on in one process
    assert short_run(["--resume", str(stopped)]) == 0
    whole = tmp_path / "whole"
    assert short_run(arguments(whole, CNN)) == 0
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_shared_out_comes_back_in_order(monkeypatch, world_size):
    items = list(range(7))
    everyone = [Ranks(rank, world_size) for rank in range(world_size)]
    shares = [list(ranks.shared_out(items)) for ranks in everyone]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def exchange(every, here):
        every[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", exchange)
    assert all(
        ranks.gathered(share) == items for ranks, share in zip(everyone, shares, strict=True)
    )


@pytest.mark.usefixtures("without_plots")
def test_what_other_ranks_have_measured_comes_to_this_ranks_device(one_epoch, tmp_path):
    """Their tensors come on their GPU, where this one's net is not."""

    class Elsewhere:
        def __init__(self, tensor):
            assert tensor.device.type == "cpu"
            self.tensor = tensor

        def to(self, device):
            return self.tensor.to(device)

    def elsewhere(made):
        if not isinstance(made, tuple):
            return made
        own, its_scores = made
        return {name: tuple(map(Elsewhere, pair)) for name, pair in own.items()}, its_scores

    class OfSeveral(Ranks):
        def gathered(self, here):
            return [elsewhere(made) for made in here]

    folder = Path(shutil.copytree(one_epoch, tmp_path / "run"))
    recipe = read_recipe(folder / "recipe.json")
    finish(recipe, read_splits(recipe), folder, OfSeveral())
    assert load_bundle(folder / "bundle").statistics


def test_hours_are_planned_by_one_process(tmp_path):
    asked = build_parser("").parse_args(["--hours", "2", "--out", str(tmp_path / "run")])
    assert find_job(asked).recipe.training_hours == 0
    with pytest.raises(ValueError, match=r"of 2 processes give --set training_hours=2$"):
        find_job(asked, world_size=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_evaluations_and_the_end_are_shared_out(tmp_path):
    """The same answers and their accuracy, up to the images on which rounding decides."""
    short = [*CNN, "epochs=2", "held_out_images=1110", "evaluate_every=1", "answer_budgets=5"]
    chosen = [p for s in (*COMMON, *short) for p in ("--set", s)]
    with Torchrun("-m", "trainer.run", *chosen, "--out", str(tmp_path / "two")) as two:
        assert two.process.wait(2 * PATIENCE_S) == 0
    assert main([*chosen, "--out", str(tmp_path / "one")]) == 0
    evaluations, frontiers = [], []
    for name in ("one", "two"):
        log = read_log(tmp_path / name / "log.jsonl")
        evaluations.append(next(r["rows"] for r in log if r["kind"] == "evaluation"))
        frontiers.append(json.loads((tmp_path / name / "frontier.json").read_text()))
    for one, two in (evaluations, frontiers):
        assert [row["flops"] for row in one] == [row["flops"] for row in two]
        for row, other in zip(one, two, strict=True):
            assert row["held_out_accuracy"] == pytest.approx(other["held_out_accuracy"], abs=0.02)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_in_two(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert short_run(arguments(whole, VIT)) == 0
    term = {"rank": 0, "step": 7, "signal": int(signal.SIGTERM)}
    assert short_run(arguments(parts, VIT), term) == 143
    statuses, said = in_two_processes(tmp_path, [(["--resume", str(parts)], None)])
    assert statuses == [[0], [0]], said
    assert_same_run(whole, parts)


# --------------------------------------------------------------------------------- as users run it

ENDLESS = ["epochs=1000", "batch_size=256"]


def wait_for(running, condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "nothing came"
        assert running.process.poll() is None, running.process.communicate()[1]
        time.sleep(0.02)


def has_begun(folder):
    log = folder / "log.jsonl"
    return lambda: log.exists() and '"kind":"step"' in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_leaves_a_checkpoint(tmp_path, number):
    folder = tmp_path / "run"
    with Torchrun("-m", "trainer.run", *arguments(folder, ENDLESS)) as running:
        wait_for(running, has_begun(folder))
        ranks = running.ranks()
        running.process.send_signal(number)
        _, said = running.process.communicate(timeout=PATIENCE_S)
    assert said.count(f"stopped by {number.name}; step ") == 1, said
    assert said.count("is kept; go on with: torchrun") == 1, said
    assert "error:" not in said
    assert not any(rank.is_running() for rank in ranks)
    assert load_checkpoint(folder)["step"] >= STEPS
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(tmp_path, victim):
    folder = tmp_path / "run"
    chosen = arguments(folder, [*ENDLESS, "checkpoint_every_s=0"])
    with Torchrun("-m", "trainer.run", *chosen) as running:
        wait_for(running, has_begun(folder))
        ranks = running.ranks()
        ranks[victim].kill()
        _, said = running.process.communicate(timeout=PATIENCE_S)
    assert running.process.returncode == 1, said
    assert not any(rank.is_running() for rank in ranks)
    assert said.count("is kept; go on with: torchrun") == victim, "the first rank says it"
    step = load_checkpoint(folder)["step"]
    assert step >= STEPS - 1  # the log is written before the checkpoint
    more = {"rank": 0, "step": 2, "signal": int(signal.SIGTERM)}
    assert short_run(["--resume", str(folder)], more) == 143
    assert load_checkpoint(folder)["step"] == step + 2
