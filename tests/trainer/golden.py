"""Loss curves that refactors must keep: ``python -m tests.trainer.golden`` records them anew.

Record again only when a change is meant to change numbers, and say so in its commit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch

import trainer.report.monitor
import trainer.run
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.log import read_log
from trainer.engine.provenance import provenance

FILE = Path(__file__).resolve().parents[1] / "reference" / "golden_curves.json"
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


def run_curve(name: str, folder: Path) -> dict[str, object]:
    """Train for a few dozen steps on one thread; what every step did, and what came of it."""
    settings = [part for s in (*COMMON, *CURVES[name]) for part in ("--set", s)]
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
        [row["val_accuracy"] for row in record["rows"]]
        for record in records
        if record["kind"] == "evaluation"
    ]
    return {
        "steps": [[r[field] for field in FIELDS] for r in records if r["kind"] == "step"],
        "probabilities": [r["probabilities"] for r in records if r["kind"] == "groups"],
        "loss_drops": [r["loss_drops"] for r in records if r["kind"] == "groups"],
        "val_accuracy": accuracies,
        "net": checksums(state["net"]),
        "generator": checksums(state["generator"]),
    }


def checksums(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """The norm of each tensor, summed in float64."""
    return {name: float(t.double().norm()) for name, t in tensors.items()}


def here() -> dict[str, object]:
    """What decides the last bits: another build or processor adds in another order."""
    known = provenance()
    vectors = torch.backends.cpu.get_cpu_capability()
    return {"torch": known["torch"], "machine": known["machine"], "vectors": vectors}


def main() -> None:
    """Record all curves."""
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: run_curve(name, Path(folder) / name) for name in CURVES}
    FILE.write_text(json.dumps({"made_with": here(), "fields": FIELDS, **curves}) + "\n")
    print(f"recorded {FILE}")


if __name__ == "__main__":
    main()
