"""One training step: the losses of Algorithm 1 and their gradients. No files, no logging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.arch import Arch
from models.decode import decode
from models.generator import ArchitectureGenerator
from models.generator_report import policy_of
from models.nets.elastic import AbstractNet
from models.relaxed import Relaxed, RelaxedFlops
from models.resource_loss import ResourceLoss, fit_to_budgets
from trainer.evaluate import at_resolution
from trainer.recipe import GeneratorOptions, Recipe
from trainer.samplers.base import Draw


@dataclass(frozen=True)
class StepResult:
    """What a step did: mean task loss, L_RC, and the subnet of the last draw.

    drawn: FLOPs and task loss of every subnet that the step trained.
    """

    loss: float
    resource_loss: float
    flops: int
    budget_flops: float | None
    drawn: tuple[tuple[int, float], ...]


def resource_loss_of(options: GeneratorOptions, relaxed_flops: RelaxedFlops) -> ResourceLoss:
    """L_RC and the entropy term as a recipe wants them."""
    return ResourceLoss(
        relaxed_flops, options.resource_weight, options.resource_batch, options.entropy_weight
    )


def pretrain_generator(
    generator: ArchitectureGenerator,
    relaxed_flops: RelaxedFlops,
    options: GeneratorOptions,
    rng: torch.Generator,
) -> None:
    """Teach the generator to keep budgets before the supernet trains: it needs no image.

    Differs from the paper, where both start together and early draws miss their budgets.
    """
    fit_to_budgets(
        generator,
        resource_loss_of(options, relaxed_flops),
        steps=options.pretrain_steps,
        learning_rate=options.pretrain_learning_rate,
        temperatures=(options.first_temperature, options.last_temperature),
        rng=rng,
    )


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
    over a batch of budgets across the range.
    """
    space = generator.space
    drawn = [draw.budget_flops for draw in draws if draw.budget_flops is not None]
    policies, generator_loss, resource_loss = resource_loss_of(recipe.generator, relaxed_flops)(
        generator, drawn, temperature=temperature, rng=rng
    )
    generator_loss.backward(retain_graph=masked and bool(drawn))

    # task loss of every drawn subnet
    drawn_losses: list[tuple[int, float]] = []
    teacher: Tensor | None = None
    row, arch = 0, space.largest
    for draw in draws:
        subnet: Arch | Relaxed
        if draw.arch is not None:
            subnet = arch = draw.arch
        else:
            assert draw.budget_flops is not None
            relaxed = generator.relaxed(policies, row)
            arch = relaxed.arch()
            if not masked and float(torch.rand((), generator=rng)) < recipe.generator.served_share:
                policy = policy_of(generator)
                log_p = policy.log_probabilities(draw.budget_flops)
                arch = decode(space, log_p, draw.budget_flops)
            subnet = relaxed if masked else arch
            row += 1
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            resized = at_resolution(images, space.resolution(arch))
            logits = net(resized, subnet, drop_path=recipe.drop_path)
        if draw.distil:
            assert teacher is not None, "the first draw of a step is the teacher"
            loss = F.cross_entropy(logits.float(), teacher)
        else:
            loss = F.cross_entropy(
                logits.float(), labels, label_smoothing=recipe.optimizer.label_smoothing
            )
            teacher = logits.detach().float().softmax(1) if teacher is None else teacher
        loss.backward(retain_graph=masked and row < len(drawn))
        drawn_losses.append((space.flops(arch), float(loss.detach())))
    return StepResult(
        loss=sum(loss for _, loss in drawn_losses) / len(drawn_losses),
        resource_loss=float(resource_loss.detach()),
        flops=space.flops(arch),
        budget_flops=drawn[-1] if drawn else None,
        drawn=tuple(drawn_losses),
    )
