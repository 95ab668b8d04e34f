"""One training step: the losses of Algorithm 1 and their gradients. No files, no logging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from models.arch import Arch
from models.generator import ArchitectureGenerator
from models.nets.elastic import AbstractNet
from models.relaxed import Relaxed, RelaxedFlops
from trainer.evaluate import at_resolution
from trainer.recipes import Recipe
from trainer.samplers.base import Draw


@dataclass(frozen=True)
class StepResult:
    """What a step did: mean task loss, L_RC, and the subnet of the last draw."""

    loss: float
    resource_loss: float
    flops: int
    budget_flops: float | None


def linear(first: float, last: float, progress: float) -> float:
    """A value that moves from first to last as progress goes from 0 to 1."""
    return first + (last - first) * min(progress, 1.0)


def train_step(
    net: AbstractNet,
    generator: ArchitectureGenerator,
    relaxed_flops: RelaxedFlops,
    draws: list[Draw],
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    masked: bool,
    temperature: float,
    rng: torch.Generator,
) -> StepResult:
    """Accumulate the gradients of the supernet's weights and of the generator.

    One generator call serves both its uses: the archs of the drawn budgets, and the resource loss
    over a batch of budgets across the range, half of them sampled and half of them argmax, so
    that both what trains and what is served keeps its budget.
    """
    space, options = generator.space, recipe.generator
    drawn = [draw.budget_flops for draw in draws if draw.budget_flops is not None]
    spread = (torch.arange(options.resource_batch) + torch.rand(options.resource_batch, generator=rng))
    order = torch.randperm(options.resource_batch, generator=rng)
    spread = spread[order].double() / options.resource_batch
    range_flops = space.max_flops - space.min_flops
    budgets = torch.cat([torch.tensor(drawn).double(), space.min_flops + range_flops * spread])
    policies, log_probabilities = generator(
        budgets,
        temperature=temperature,
        noise=rng,
        noisy=len(drawn) + options.resource_batch // 2,
    )

    # L_RC (Eq. 10): squared distance to the budget, in units of the space's range
    gap = (relaxed_flops(policies) - budgets) / range_flops
    resource_loss = gap.square().mean()
    entropy = -sum(
        ((p.exp() * p).sum(1).mean() for p in log_probabilities.values()), start=torch.zeros(())
    )
    generator_loss = options.resource_weight * resource_loss - options.entropy_weight * entropy
    generator_loss.backward(retain_graph=masked and bool(drawn))

    # task loss of every drawn subnet
    losses: list[float] = []
    teacher: Tensor | None = None
    row, arch = 0, space.largest
    for draw in draws:
        subnet: Arch | Relaxed
        if draw.arch is not None:
            subnet = arch = draw.arch
        else:
            relaxed = generator.relaxed(policies, row)
            arch = relaxed.arch()
            subnet = relaxed if masked else arch
            row += 1
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = net(at_resolution(images, space.resolution(arch)), subnet)
        if draw.distil:
            assert teacher is not None, "the first draw of a step is the teacher"
            loss = F.cross_entropy(logits.float(), teacher)
        else:
            loss = F.cross_entropy(
                logits.float(), labels, label_smoothing=recipe.optimizer.label_smoothing
            )
            teacher = logits.detach().float().softmax(1) if teacher is None else teacher
        loss.backward(retain_graph=masked and row < len(drawn))
        losses.append(float(loss.detach()))
    return StepResult(
        loss=sum(losses) / len(losses),
        resource_loss=float(resource_loss.detach()),
        flops=space.flops(arch),
        budget_flops=drawn[-1] if drawn else None,
    )
