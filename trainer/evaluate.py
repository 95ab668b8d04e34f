"""Evaluation: what the generator answers at fixed budgets, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from models.generator.decode import decode_all
from models.generator.network import ArchitectureGenerator
from models.generator.report import GeneratorReport, even_budgets, policy_of, report_generator
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.normalize import TensorStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from trainer.data.batches import Batch, Batches
from trainer.engine.log import Record
from trainer.ranks import ALONE, Ranks

Item = TypeVar("Item")


class Abandoned(Exception):
    """An evaluation was asked to stop before its end."""


def until(stop: Callable[[], bool], items: Iterable[Item]) -> Iterator[Item]:
    """The items, as long as nothing asks to stop. Raises Abandoned then."""
    for item in items:
        if stop():
            raise Abandoned
        yield item


@dataclass(frozen=True)
class Evaluation:
    """Of the supernet and the generator at one step.

    entropy: of the policy at each group, nats. rows: what is served at a budget (budget_flops,
    flops, arch) and its top-1 accuracy on held-out images (val_accuracy, in 0..1).
    """

    generator: GeneratorReport
    entropy: list[float]
    rows: list[Record]


def answers(generator: ArchitectureGenerator, budgets: Sequence[float]) -> list[Arch]:
    """What is served at each budget: the generator's policy, decoded within the budget."""
    return decode_all(policy_of(generator), budgets)


def entropies(generator: ArchitectureGenerator, groups: Sequence[int]) -> list[float]:
    """Entropy in nats of the generator's policy at each group: 0 is one arch and no other."""
    with torch.no_grad():
        _, log_probabilities = generator(torch.tensor(groups, dtype=torch.float64))
    each = [-(p.exp() * p).sum(1) for p in log_probabilities.values()]
    return torch.stack(each).sum(0).tolist()


def calibrated(
    net: AbstractNet, arch: Arch, images: Iterable[Tensor], device: str
) -> TensorStatistics:
    """BatchNorm statistics of an arch on cached training batches."""
    resolution = net.space.resolution(arch)
    return calibrate(net, arch, (at_resolution(i.to(device), resolution) for i in images))


def accuracy(
    net: AbstractNet,
    arch: Arch,
    statistics: TensorStatistics,
    data: Iterable[Batch],
    device: str,
) -> float:
    """Top-1 accuracy of a subnet, in 0..1."""
    return float(right_answers(net, arch, statistics, data, device).mean())


@torch.inference_mode()
def right_answers(
    net: AbstractNet,
    arch: Arch,
    statistics: TensorStatistics,
    data: Iterable[Batch],
    device: str,
) -> np.ndarray:
    """Which images a subnet gets right: bool, (images,), in the order of the data."""
    was_training = net.training
    net.eval()
    resolution = net.space.resolution(arch)
    right: list[Tensor] = []
    for batch in data:
        images = at_resolution(batch.images.to(device), resolution)
        predicted = net(images, arch, statistics).argmax(1).cpu()
        right.append(predicted == batch.labels.cpu())
    net.train(was_training)
    return torch.cat(right).numpy()


def evaluate(
    net: AbstractNet,
    generator: ArchitectureGenerator,
    groups: Sequence[int],
    *,
    budgets: int,
    calibration: Sequence[Tensor],
    data: Batches,
    device: str,
    archs: Sequence[Arch] = (),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """What is served at so many even budgets, calibrated on ``calibration``, right on ``data``.

    archs: in place of what the generator answers, where a run trains them and no others. All ranks
    have the same images, and share the budgets out. Raises Abandoned in all of them as
    soon as ``stop`` says so in one, which it is asked before every batch.
    """
    space = generator.space
    asked = [float(space.flops(arch)) for arch in archs] or even_budgets(space, budgets)
    archs = archs or answers(generator, asked)
    right: list[float] = []
    abandoned = False
    try:
        for arch in ranks.shared_out(archs):
            statistics = calibrated(net, arch, until(stop, calibration), device)
            right.append(accuracy(net, arch, statistics, until(stop, data), device))
    except Abandoned:
        abandoned = True
    if ranks.most(abandoned):
        raise Abandoned
    rows: list[Record] = [
        {
            "budget_flops": budget,
            "flops": space.flops(arch),
            "val_accuracy": found,
            "arch": space.arch_to_json(arch),
        }
        for budget, arch, found in zip(asked, archs, ranks.gathered(right), strict=True)
    ]
    return Evaluation(report_generator(generator), entropies(generator, groups), rows)
