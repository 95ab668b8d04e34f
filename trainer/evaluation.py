"""Evaluation: how right the supernet and its generator are while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from models.generator.answer import answers_within
from models.generator.network import ArchitectureGenerator
from models.generator.report import GeneratorReport, even_budgets, policy_of, report_generator
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.normalize import BatchStatistics, FrozenStatistics, TensorStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from trainer.data.batches import Batch, Batches
from trainer.engine.log import Record
from trainer.ranks import ALONE, Ranks
from trainer.scores import Scores

Item = TypeVar("Item")

SUFFICIENCY_IMAGES = 128
"""Held-out images on which Eq. 4 is measured at an evaluation."""


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
    flops, arch), its top-1 accuracy on held-out images (held_out_accuracy, in 0..1) and
    gradient_norm.
    """

    generator: GeneratorReport
    entropy: list[float]
    rows: list[Record]


def answers(generator: ArchitectureGenerator, budgets: Sequence[float]) -> list[Arch]:
    """What is served at each budget: the most probable arch of its policy within the budget."""
    return answers_within(policy_of(generator), budgets)


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
    statistics: BatchStatistics,
    data: Iterable[Batch],
    device: str,
) -> float:
    """Top-1 accuracy of a subnet, in 0..1."""
    return float(right_answers(net, arch, statistics, data, device).mean())


def right_answers(
    net: AbstractNet,
    arch: Arch,
    statistics: BatchStatistics,
    data: Iterable[Batch],
    device: str,
) -> np.ndarray:
    """Which images a subnet gets right: bool, (images,), in the order of the data."""
    batches = _outputs(net, arch, statistics, data, device)
    return torch.cat([logits.argmax(1) == labels for logits, labels in batches]).numpy()


def scores(
    net: AbstractNet,
    arch: Arch,
    statistics: BatchStatistics,
    data: Iterable[Batch],
    device: str,
    temperature: float | None = None,
) -> Scores:
    """How right a subnet is, and how sure. temperature: None fits one to these images."""
    batches = list(_outputs(net, arch, statistics, data, device))
    logits, labels = (torch.cat(parts).float().numpy() for parts in zip(*batches, strict=True))
    if temperature is None:
        return Scores.fitted(logits, labels.astype(np.int64))
    return Scores.of(logits, labels.astype(np.int64), temperature)


def _outputs(
    net: AbstractNet,
    arch: Arch,
    statistics: BatchStatistics,
    data: Iterable[Batch],
    device: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of each batch."""
    was_training = net.training
    net.eval()
    resolution = net.space.resolution(arch)
    try:
        for batch in data:
            with torch.inference_mode():
                logits = net(at_resolution(batch.images.to(device), resolution), arch, statistics)
            yield logits.cpu(), batch.labels.cpu()
    finally:
        net.train(was_training)


def gradient_norm(
    net: AbstractNet,
    arch: Arch,
    batch: Batch,
    device: str,
    frozen: FrozenStatistics | None = None,
) -> float:
    """Eq. 4, the paper's sufficiency: the norm of the gradient of a subnet's weights.

    The loss is that on at most 128 images of a batch, whose statistics BatchNorm takes unless they
    are ``frozen``. The norm is 0 where a subnet has converged. Changes nothing.
    """
    images, labels = batch.images[:SUFFICIENCY_IMAGES], batch.labels[:SUFFICIENCY_IMAGES]
    images = at_resolution(images.to(device), net.space.resolution(arch))
    weights = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    loss = F.cross_entropy(functional_call(net, weights, (images, arch, frozen)), labels.to(device))
    found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return float(torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt())


def evaluate(
    net: AbstractNet,
    generator: ArchitectureGenerator,
    groups: Sequence[int],
    *,
    budgets: int,
    statistics_of: Callable[[Arch], BatchStatistics],
    data: Batches,
    device: str,
    frozen: FrozenStatistics | None = None,
    archs: Sequence[Arch] = (),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """What is served at so many even budgets, how often it is right on ``data``, and Eq. 4.

    ``statistics_of``: BatchNorm's, of an arch. frozen: those that all archs share, if they do.

    archs: in place of what the generator answers, where a run trains them and no others. All ranks
    have the same images, and share the budgets out. Raises Abandoned in all of them as
    soon as ``stop`` says so in one, which it is asked before every batch.
    """
    space = generator.space
    asked = [float(space.flops(arch)) for arch in archs] or even_budgets(space, budgets)
    archs = archs or answers(generator, asked)
    found: list[tuple[float, float]] = []
    first = data.batch(0, 0)
    abandoned = False
    try:
        found = [
            (
                accuracy(net, arch, statistics_of(arch), until(stop, data), device),
                gradient_norm(net, arch, first, device, frozen),
            )
            for arch in ranks.shared_out(archs)
        ]
    except Abandoned:
        abandoned = True
    if ranks.most(abandoned):
        raise Abandoned
    rows: list[Record] = [
        {
            "budget_flops": budget,
            "flops": space.flops(arch),
            "held_out_accuracy": right,
            "gradient_norm": norm,
            "arch": space.arch_to_json(arch),
        }
        for budget, arch, (right, norm) in zip(asked, archs, ranks.gathered(found), strict=True)
    ]
    return Evaluation(report_generator(generator), entropies(generator, groups), rows)
