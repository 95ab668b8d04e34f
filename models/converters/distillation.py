"""Teaching a generator with images that have no labels. Uses torch.

The supernet stays as it is. At a budget the generator draws several archs, all of them answer the
same images, and those whose answers are nearer to the largest subnet's (less KL divergence) gain
probability: a policy gradient with the others' mean as its baseline. Subnets are sliced and need no
backward pass, and the resolution learns like every other decision, which no mask reaches. L_RC
stays beside it, so that budgets are kept. No sources: this project's own. Not shown to help
(docs/experiments.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.generator.network import ArchitectureGenerator
from models.generator.resource_loss import ResourceLoss
from models.images.photos import Photos
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.space.arch import Arch

CALIBRATION_BATCH = 32
_TEMPERATURE = 0.3
_SPREAD = 1e-6  # of divergences, in nats: below it archs answer alike


@dataclass(frozen=True, eq=False)
class Teacher:
    """What the largest subnet answers to photos: log-probabilities, float32 (photos, classes)."""

    photos: Photos
    log_probabilities: Tensor


@dataclass(frozen=True)
class Distillation:
    """How the generator learns from a teacher.

    images, archs: of a step. weight: of the policy gradient, beside the resource loss.
    learning_rate: Adam's; it falls to a tenth.
    """

    images: int = 64
    archs: int = 4
    weight: float = 0.3
    learning_rate: float = 1e-3


def calibration_batches(photos: Photos, resolution: int, count: int) -> Iterable[Tensor]:
    """The first ``count`` photos, as ``models.nets.calibration`` wants them."""
    for start in range(0, min(count, len(photos)), CALIBRATION_BATCH):
        rows = slice(start, min(start + CALIBRATION_BATCH, count))
        yield torch.from_numpy(photos.batch(rows, resolution))


@torch.no_grad()
def ask_largest(net: AbstractNet, photos: Photos) -> Teacher:
    """The answers of the largest subnet, its BatchNorm measured on the same photos."""
    space, arch = net.space, net.space.largest
    side = space.resolution(arch)
    statistics = calibrate(net, arch, calibration_batches(photos, side, len(photos)))
    was_training = net.training
    net.eval()
    logits = [
        net(images, arch, statistics or None)
        for images in calibration_batches(photos, side, len(photos))
    ]
    net.train(was_training)
    return Teacher(photos, torch.cat(logits).log_softmax(1))


def distil(
    generator: ArchitectureGenerator,
    net: AbstractNet,
    teacher: Teacher,
    loss: ResourceLoss,
    how: Distillation,
    *,
    steps: int,
    rng: torch.Generator,
    seconds: float = float("inf"),
    track: Callable[[range], Iterable[int]] = iter,
) -> int:
    """Train the generator; answers how many steps were made, fewer if ``seconds`` were over.

    ``net`` is in training mode: BatchNorm normalizes by the batch. ``track`` sees each step.
    """
    assert net.training, "statistics belong to archs; drawn ones have none"
    optimizer = torch.optim.Adam(generator.parameters(), lr=how.learning_rate, fused=True)
    start = time.monotonic()
    done = 0
    for step in track(range(steps)):
        progress = max(step / steps, (time.monotonic() - start) / seconds)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * (1 - 0.9 * progress)
        optimizer.zero_grad()
        _, total, _ = loss(generator, (), temperature=_TEMPERATURE, rng=rng)
        (total + how.weight * policy_loss(generator, net, teacher, how, rng)).backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        done += 1
    return done


def policy_loss(
    generator: ArchitectureGenerator,
    net: AbstractNet,
    teacher: Teacher,
    how: Distillation,
    rng: torch.Generator,
) -> Tensor:
    """Its gradient makes one budget's archs more probable, the nearer they are to the teacher."""
    space, count = generator.space, len(teacher.log_probabilities)
    rows = torch.randperm(count, generator=rng)[: how.images].numpy()
    wanted = teacher.log_probabilities[rows]
    share = float(torch.rand((), generator=rng))
    budget = space.min_flops + (space.max_flops - space.min_flops) * share
    policies, log_p = generator(torch.full((how.archs,), budget, dtype=torch.float64), noise=rng)
    archs = [generator.relaxed(policies, row).arch() for row in range(how.archs)]
    found = {arch: divergence(net, arch, teacher.photos, rows, wanted) for arch in archs}
    divergences = torch.tensor([found[arch] for arch in archs])
    # in units of their spread, which differs much from budget to budget
    advantage = (divergences.mean() - divergences) / (divergences.std() + _SPREAD)
    of_arch = torch.stack(
        [(log_p[d.name] * policies[d.name].detach()).sum(1) for d in space.decisions]
    ).sum(0)
    return -(advantage * of_arch).mean()


@torch.no_grad()
def divergence(
    net: AbstractNet, arch: Arch, photos: Photos, rows: np.ndarray, wanted: Tensor
) -> float:
    """KL(largest || arch) over some photos, in nats an image; ``wanted``: the largest's answers."""
    images = torch.from_numpy(photos.batch(rows, net.space.resolution(arch)))
    logits = net(images, arch)
    return float(F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean", log_target=True))
