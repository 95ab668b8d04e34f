"""One training step: the losses of Algorithm 1 and their gradients. No files, no logging."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.generator.decode import decode
from models.generator.network import ArchitectureGenerator
from models.generator.report import policy_of
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.nets.elastic import AbstractNet
from models.nets.resolution import at_resolution
from models.nets.view import Share
from models.space.arch import Arch
from models.space.relaxed import Relaxed, RelaxedFlops
from trainer.engine.compiled import RunNet
from trainer.engine.ranks import ALONE, Ranks
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import GeneratorOptions
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


@dataclass(frozen=True)
class MicroBatch:
    """Images that run at once, and their weight in the loss: their share of those here."""

    images: Tensor
    labels: Tensor
    share: Share
    weight: float


def micro_batches(
    images: Tensor, labels: Tensor, count: int, ranks: Ranks = ALONE
) -> list[MicroBatch]:
    """This rank's images of a batch in ``count`` parts, as even as may be."""
    found: list[MicroBatch] = []
    start, size = 0, len(images)
    for part, its_labels in zip(
        images.tensor_split(count), labels.tensor_split(count), strict=True
    ):
        if len(part):
            share = ranks.share(start, start + len(part), size)
            found.append(MicroBatch(part, its_labels, share, len(part) / size))
            start += len(part)
    return found


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The precision in which a recipe's supernet runs; the generator and all losses are in fp32."""
    half = torch.float16 if recipe.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=recipe.precision != "fp32")


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
    scaler: torch.amp.GradScaler,
    ranks: Ranks = ALONE,
    masked_net: RunNet | None = None,
) -> StepResult:
    """Accumulate the gradients of the supernet's weights and of the generator.

    One generator call serves both its uses: the archs of the drawn budgets, and the resource loss
    over a batch of budgets across the range. images, labels: this rank's; losses and gradients are
    those of the whole batch. Gradients come scaled by ``scaler``. masked_net: runs masks in place
    of ``net``, on its parameters (``trainer.engine.compiled``).
    """
    space = generator.space
    drawn = [draw.budget_flops for draw in draws if draw.budget_flops is not None]
    policies, generator_loss, resource_loss = resource_loss_of(recipe.generator, relaxed_flops)(
        generator, drawn, temperature=temperature, rng=rng
    )
    scaler.scale(generator_loss).backward(retain_graph=masked and bool(drawn))

    # task loss of every drawn subnet
    parts = micro_batches(images, labels, recipe.accumulate, ranks)
    drawn_losses: list[tuple[int, float]] = []
    teachers: list[Tensor] = []
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
        run = net if masked_net is None or isinstance(subnet, Arch) else masked_net
        total_loss = 0.0
        for place, part in enumerate(parts):
            more = place + 1 < len(parts)
            # all parts draw the same numbers, of which each takes its own
            with same_noise(images.device, again=more), autocast(recipe, images.device):
                resized = at_resolution(part.images, space.resolution(arch))
                logits = run(
                    resized,
                    subnet,
                    ranks.normalizer,
                    drop_path=recipe.drop_path,
                    share=part.share,
                    recompute=recipe.activation_checkpointing,
                )
            if draw.distil:
                assert len(teachers) == len(parts), "the first draw of a step is the teacher"
                loss = F.cross_entropy(logits.float(), teachers[place])
            else:
                loss = F.cross_entropy(
                    logits.float(), part.labels, label_smoothing=recipe.optimizer.label_smoothing
                )
                if place == len(teachers):
                    teachers.append(logits.detach().float().softmax(1))
            loss = loss * part.weight
            scaler.scale(loss).backward(retain_graph=masked and (more or row < len(drawn)))
            total_loss += float(loss.detach())
            del logits, loss  # or a graph that was retained would stay while the next is built
        drawn_losses.append((space.flops(arch), total_loss))
    ranks.average_gradients([*net.parameters(), *generator.parameters()])
    drawn_losses = ranks.mean_losses(drawn_losses)
    return StepResult(
        loss=sum(loss for _, loss in drawn_losses) / len(drawn_losses),
        resource_loss=float(resource_loss.detach()),
        flops=space.flops(arch),
        budget_flops=drawn[-1] if drawn else None,
        drawn=tuple(drawn_losses),
    )


def same_noise(device: torch.device, *, again: bool) -> AbstractContextManager[None]:
    """With ``again``, what draws from torch's own generators draws the same once more after it."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices, enabled=again)
