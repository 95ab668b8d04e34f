"""Evaluation: what the generator answers at fixed budgets, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from models.generator.decode import decode_all
from models.generator.network import ArchitectureGenerator
from models.generator.report import GeneratorReport, even_budgets, policy_of, report_generator
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.normalize import BatchStatistics, TensorStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from trainer.data.batches import Batch, Batches
from trainer.engine.log import Record

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
    policy = policy_of(generator)
    return decode_all(generator.space, policy.log_probabilities_of(budgets), budgets)


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


@torch.inference_mode()
def accuracy(
    net: AbstractNet,
    arch: Arch,
    statistics: BatchStatistics,
    data: Iterable[Batch],
    device: str,
) -> float:
    """Top-1 accuracy of a subnet, in 0..1."""
    was_training = net.training
    net.eval()
    resolution = net.space.resolution(arch)
    right = seen = 0
    for batch in data:
        images = at_resolution(batch.images.to(device), resolution)
        predicted = net(images, arch, statistics).argmax(1).cpu()
        right += int((predicted == batch.labels.cpu()).sum())
        seen += len(predicted)
    net.train(was_training)
    return right / seen


def evaluate(
    net: AbstractNet,
    generator: ArchitectureGenerator,
    groups: Sequence[int],
    *,
    budgets: int,
    statistics_of: Callable[[Arch], BatchStatistics],
    data: Batches,
    device: str,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """What is served at so many even budgets, and how often it is right on ``data``.

    ``statistics_of``: BatchNorm's, of an arch.

    Raises Abandoned as soon as ``stop`` says so, which it is asked before every batch.
    """
    space = generator.space
    rows: list[Record] = []
    asked = even_budgets(space, budgets)
    for budget, arch in zip(asked, answers(generator, asked), strict=True):
        right = accuracy(net, arch, statistics_of(arch), until(stop, data), device)
        rows.append(
            {
                "budget_flops": budget,
                "flops": space.flops(arch),
                "val_accuracy": right,
                "arch": space.arch_to_json(arch),
            }
        )
    return Evaluation(report_generator(generator), entropies(generator, groups), rows)
