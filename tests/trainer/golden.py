"""Short training runs with fixed seeds, for whoever changes code and means to change no number.

    python -m tests.trainer.golden --against main    # bit for bit: this code and that of a commit
    python -m tests.trainer.golden --record          # the committed file, which the test reads

Last bits differ between processors and builds of torch, and training makes more of them. So whole
runs are compared only on one machine, by ``--against``, and the committed file holds what last bits
do not reach: draws, learning rates, and the first losses. Record again only when a change is meant
to change these, and say so in its commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch

import trainer.report.monitor
import trainer.run
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.log import read_log

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "reference" / "golden_curves.json"
COMMON = [
    "epochs=2",
    "threads=1",
    "shift_every=4",
    "warm_up_share=0.1",
    "generator.pretrain_steps=20",
    "evaluate_every=1",
    "evaluation_budgets=3",
    "calibration_batches=2",
]
CURVES = {
    # every step masked, the shift through the generator: the paper
    "paper": ["sampler=shift", "generator.masked_every=1"],
    # mostly sliced steps, the direct shift
    "fast": ["sampler=shift-direct", "generator.masked_every=4"],
    "sandwich": ["sampler=sandwich", "generator.masked_every=1", "epochs=1"],
    # a ViT has no BatchNorm and another optimizer
    "vit": [
        "space=nano-vit",
        "optimizer.name=adamw",
        "optimizer.learning_rate=0.002",
        "optimizer.clip_norm=1.0",
        "generator.masked_every=2",
    ],
}
FIELDS = ("step", "loss", "resource_loss", "budget_flops", "flops", "lr")
FIRST = 5
"""Steps whose losses last bits do not reach: 1e-6 of them was seen between processors, and a
thousand times as much ten steps later."""


def run_curve(name: str, folder: Path, *more: str) -> dict[str, object]:
    """Train for a few dozen steps on one thread; what every step did, and what came of it.

    more: other settings.
    """
    settings = [part for s in (*COMMON, *CURVES[name], *more) for part in ("--set", s)]
    threads = torch.get_num_threads()
    try:
        with (
            patch.object(trainer.report.monitor, "LOG_EVERY_STEPS", 1),
            patch.object(trainer.run, "finish", lambda *_: {}),
        ):
            assert trainer.run.main([*settings, "--out", str(folder)]) == 0
    finally:
        torch.set_num_threads(threads)
    records = read_log(folder / "log.jsonl")
    state = load_checkpoint(folder)
    accuracies = [
        [row["held_out_accuracy"] for row in record["rows"]]
        for record in records
        if record["kind"] == "evaluation"
    ]
    return {
        "steps": [[r[field] for field in FIELDS] for r in records if r["kind"] == "step"],
        "probabilities": [r["probabilities"] for r in records if r["kind"] == "groups"],
        "loss_drops": [r["loss_drops"] for r in records if r["kind"] == "groups"],
        "val_accuracy": accuracies,  # as earlier commits call it, for --against
        "net": hashes(state["net"]),
        "generator": hashes(state["generator"]),
    }


def hashes(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Of each tensor's bytes."""
    return {n: hashlib.sha256(t.numpy().tobytes()).hexdigest()[:12] for n, t in tensors.items()}


def run_all() -> dict[str, object]:
    """All curves, as JSON gives them back."""
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: run_curve(name, Path(folder) / name) for name in CURVES}
    return json.loads(json.dumps(curves))


def portable(curve: dict[str, list]) -> dict[str, object]:
    """What every processor and build of torch should find again of a curve."""
    rows = [dict(zip(FIELDS, step, strict=True)) for step in curve["steps"]]
    return {
        "learning_rates": [row["lr"] for row in rows],
        "draws": [[row["budget_flops"], row["flops"]] for row in rows[:FIRST]],
        "losses": [[row["loss"], row["resource_loss"]] for row in rows[:FIRST]],
    }


def differences(one: object, other: object, path: str = "") -> Iterator[str]:
    """Where two JSON values differ, one line each."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key, value in one.items():
            yield from differences(value, other[key], f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, value in enumerate(one):
            yield from differences(value, other[index], f"{path}[{index}]")
    elif one != other:
        yield f"{path.removeprefix('.')}: {one!r:.80} became {other!r:.80}"


def curves_of(commit: str) -> dict[str, object]:
    """All curves by the code of a commit, in a checkout of its own."""
    with tempfile.TemporaryDirectory() as folder:
        checkout, saved = Path(folder) / "checkout", Path(folder) / "curves.json"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", str(checkout), commit], check=True)
        try:
            command = [sys.executable, "-m", "tests.trainer.golden", "--save", str(saved)]
            subprocess.run(command, cwd=checkout, check=True)
            return json.loads(saved.read_text())
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)


def main() -> int:
    """Exit status: 1 where a number has changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--against", metavar="COMMIT", help="compare with the code of this commit")
    what.add_argument("--record", action="store_true", help=f"write {FILE.relative_to(ROOT)}")
    what.add_argument("--save", type=Path, metavar="FILE", help="write whole curves to a file")
    options = parser.parse_args()
    curves = run_all()
    if options.save is not None:
        options.save.write_text(json.dumps(curves))
    elif options.record:
        FILE.write_text(json.dumps({n: portable(c) for n, c in curves.items()}) + "\n")
    else:
        found = [*differences(curves_of(options.against), curves)]
        print("\n".join(found) or f"every number is that of {options.against}")
        return bool(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
