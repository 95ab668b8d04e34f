"""What subnets of a trained run reach: loss and accuracy, on held-out and on test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.parts.lines import Row
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.nets.normalize import TensorStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from models.spaces import get_space
from trainer.data.batches import Batches
from trainer.data.run_data import batches_of, calibration_images, evaluation_batches
from trainer.data.splits import Splits
from trainer.engine.average import served_weights
from trainer.engine.checkpoint import load_checkpoint
from trainer.evaluation import calibrated
from trainer.recipes.recipe import Recipe

CALIBRATION_BATCHES = 8


@torch.inference_mode()
def loss_and_accuracy(
    net: AbstractNet, arch: Arch, statistics: TensorStatistics, data: Batches
) -> tuple[float, float]:
    """Mean cross-entropy in nats and top-1 accuracy in 0..1 of a subnet."""
    net.eval()
    resolution = net.space.resolution(arch)
    loss, right, seen = 0.0, 0, 0
    for batch in data:
        logits = net(at_resolution(batch.images, resolution), arch, statistics)
        loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        right += int((logits.argmax(1) == batch.labels).sum())
        seen += len(logits)
    net.train()
    return loss / seen, right / seen


def measured(recipe: Recipe, splits: Splits, folder: Path, archs: Sequence[Arch]) -> list[Row]:
    """A row for each arch with the weights that the run in ``folder`` serves."""
    net = build_net(get_space(recipe.space, len(splits.labels)))
    net.load_state_dict(served_weights(load_checkpoint(folder)))
    return [score(net, arch, recipe, splits) for arch in archs]


def score(net: AbstractNet, arch: Arch, recipe: Recipe, splits: Splits) -> Row:
    """One arch, with statistics measured on training images."""
    train = batches_of(recipe, splits, splits.train, train=True)
    images = calibration_images(train, CALIBRATION_BATCHES)
    statistics = calibrated(net, arch, images, recipe.device)
    row: Row = {"flops": net.space.flops(arch)}
    for name, part in (("held_out", splits.held_out), ("test", splits.test)):
        data = evaluation_batches(part, recipe.mean, recipe.std, recipe.device)
        loss, accuracy = loss_and_accuracy(net, arch, statistics, data)
        row[f"{name}_loss"], row[f"{name}_accuracy"] = round(loss, 5), round(accuracy, 5)
    return row
