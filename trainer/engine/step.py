"""One training step: Algorithm 1 of the paper for one batch. No files, no logging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.generator.answer import answer_within
from models.generator.report import policy_of
from models.generator.resource_loss import fit_to_budgets
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from models.space.relaxed import Relaxed
from trainer.data.batches import Batch
from trainer.engine.compiled import RunNet
from trainer.engine.horizon import step_compute
from trainer.engine.optim import Schedule
from trainer.engine.state import TrainingState
from trainer.engine.task import MicroBatch, Task, micro_batches
from trainer.engine.teacher import LARGEST, Teacher
from trainer.ranks import ALONE, Ranks
from trainer.recipes.recipe import Recipe
from trainer.samplers.base import Draw


@dataclass(frozen=True)
class StepResult:
    """What a step did: mean task loss, L_RC, and the subnet of the last draw.

    drawn: FLOPs and task loss of every subnet that the step trained. compute: multiply-adds that
    this took (``trainer.engine.horizon``).
    """

    loss: float
    resource_loss: float
    flops: int
    budget_flops: float | None
    drawn: tuple[tuple[int, float], ...]
    compute: int


def train_step(
    state: TrainingState, batch: Batch, schedule: Schedule, recipe: Recipe, ranks: Ranks = ALONE
) -> StepResult:
    """Algorithm 1 on (x, y): b ~ B, a = AG(b), losses, gradients, descent, and the average.

    batch: this rank's images, on any device. Raises ValueError, before any weight moves, when the
    loss is not a finite number.
    """
    state.begin(schedule)
    result = add_gradients(state, batch, schedule, recipe, ranks)
    check_finite("loss", (result.loss,), state.step, recipe)
    state.descend(recipe.optimizer.clip_norm)
    state.compute += result.compute
    return result


def add_gradients(
    state: TrainingState, batch: Batch, schedule: Schedule, recipe: Recipe, ranks: Ranks = ALONE
) -> StepResult:
    """The gradients of a step: of the supernet's weights and of the generator.

    One generator call serves both its uses: the archs of the drawn budgets, and the resource loss
    over a batch of budgets across the range. Losses and gradients are those of the batch of all
    ranks. Gradients are scaled by ``state.scaler``.
    """
    space = state.generator.space
    draws = state.sampler.draw(state.rng, schedule.progress)  # b ~ B
    budgets = [draw.budget_flops for draw in draws if draw.budget_flops is not None]
    policies, generator_loss, resource_loss = state.resource_loss(
        state.generator, budgets, temperature=schedule.temperature, rng=state.rng
    )
    is_relaxed = schedule.masked and bool(budgets)
    state.scaler.scale(generator_loss).backward(retain_graph=is_relaxed)
    # what the subnets' losses say of the policies is summed, and goes through the generator once
    # (where a space leaves nothing to decide, a policy is a constant)
    held = {
        name: policy.detach().requires_grad_(is_relaxed and policy.requires_grad)
        for name, policy in policies.items()
    }

    subnets = choose_subnets(state, draws, held, schedule, recipe)  # a = AG(b)
    images, labels = batch.images.to(recipe.device), batch.labels.to(recipe.device)
    parts = micro_batches(images, labels, recipe.accumulate, ranks, rows=batch.rows)
    task = Task(recipe.optimizer.label_smoothing, recipe.distillation)
    teacher, is_taught = teacher_of(state, recipe), False
    if teacher is not None:
        # of its own logits the largest learns nothing
        apart = space.largest if recipe.distillation.teacher == LARGEST else None
        draws = [
            replace(draw, distil=arch_of(subnet) != apart)
            for draw, subnet in zip(draws, subnets, strict=True)
        ]
        is_taught = any(draw.distil for draw in draws)
        if is_taught:
            task.taught = {p.number: task.taken(answers_to(p, teacher, state)) for p in parts}
    losses: list[tuple[int, float]] = []
    for draw, subnet in zip(draws, subnets, strict=True):
        loss = add_subnet_gradients(state, draw, subnet, task, parts, recipe, ranks)
        losses.append((space.flops(arch_of(subnet)), loss))
    moved = [name for name, policy in held.items() if policy.grad is not None]
    torch.autograd.backward([policies[n] for n in moved], [held[n].grad for n in moved])
    ranks.average_gradients([*state.net.parameters(), *state.generator.parameters()])
    losses = ranks.mean_losses(losses)
    return StepResult(
        loss=sum(loss for _, loss in losses) / len(losses),
        resource_loss=float(resource_loss.detach()),
        flops=losses[-1][0],
        budget_flops=budgets[-1] if budgets else None,
        drawn=tuple(losses),
        compute=step_compute(
            space,
            subnets,
            len(images) * ranks.world_size,
            recipe.sampler_options,
            asks_largest=is_taught and recipe.distillation.teacher == LARGEST,
        ),
    )


def teacher_of(state: TrainingState, recipe: Recipe) -> Teacher | None:
    """The teacher of a step's subnets, if the recipe has one.

    If that is the largest subnet, it has the weights that will be served: their average, where
    there is one. It only runs forwards here; it is trained by the steps that draw it.
    """
    if recipe.distillation.teacher != LARGEST:
        return state.teacher
    net, largest = state.served_net, state.net.space.largest
    half = recipe.distillation.precision == "bf16"

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            resized = at_resolution(images, net.space.resolution(largest))
            return net(resized, largest, state.frozen)

    return answer


def answers_to(part: MicroBatch, teacher: Teacher, state: TrainingState) -> Tensor:
    """A teacher's logits (B, classes): to these images, or what is kept of earlier views."""
    if state.memory is None:
        return teacher(part.images)
    assert part.rows is not None, "training batches know their rows"
    return state.memory.answer(part.rows, part.images, teacher)


def choose_subnets(
    state: TrainingState,
    draws: Sequence[Draw],
    policies: dict[str, Tensor],
    schedule: Schedule,
    recipe: Recipe,
) -> list[Arch | Relaxed]:
    """What the generator answers to each draw: masks with gradients to it, or an arch.

    policies: one row for each draw with a budget, in their order. An arch is what the generator
    samples, or with probability ``served_share`` what it would serve.
    """
    subnets: list[Arch | Relaxed] = []
    row = 0
    for draw in draws:
        if draw.arch is not None:
            subnets.append(draw.arch)
            continue
        assert draw.budget_flops is not None
        relaxed = state.generator.relaxed(policies, row)
        row += 1
        if schedule.masked:
            subnets.append(relaxed)
        elif float(torch.rand((), generator=state.rng)) < recipe.generator.served_share:
            subnets.append(answer_within(policy_of(state.generator), draw.budget_flops))
        else:
            subnets.append(relaxed.arch())
    return subnets


def add_subnet_gradients(
    state: TrainingState,
    draw: Draw,
    subnet: Arch | Relaxed,
    task: Task,
    parts: Sequence[MicroBatch],
    recipe: Recipe,
    ranks: Ranks,
) -> float:
    """Forward and backward pass of one subnet over all parts of a batch; its loss, in nats."""
    run = runner_of(state, subnet)
    resolution = state.net.space.resolution(arch_of(subnet))
    total_loss = 0.0
    for part in parts:
        more = part.number + 1 < len(parts)
        # all parts draw the same numbers, of which each takes its own
        with same_noise(part.images.device, again=more), autocast(recipe, part.images.device):
            logits = run(
                at_resolution(part.images, resolution),
                subnet,
                state.frozen or ranks.normalizer,
                drop_path=recipe.drop_path,
                share=part.share,
                recompute=recipe.activation_checkpointing,
            )
        loss = task.loss(draw, part, logits) * part.weight
        state.scaler.scale(loss).backward()
        total_loss += float(loss.detach())
    return total_loss


def runner_of(state: TrainingState, subnet: Arch | Relaxed) -> RunNet:
    """What runs a subnet: the supernet, or its compiled form for masks."""
    if isinstance(subnet, Relaxed) and state.compiled is not None:
        return state.compiled
    return state.net


def arch_of(subnet: Arch | Relaxed) -> Arch:
    """The arch itself."""
    return subnet.arch() if isinstance(subnet, Relaxed) else subnet


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The precision in which a recipe's supernet runs; the generator and all losses are in fp32."""
    half = torch.float16 if recipe.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=recipe.precision != "fp32")


def same_noise(device: torch.device, *, again: bool) -> AbstractContextManager[None]:
    """With ``again``, what draws from torch's own generators draws the same once more after it."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices, enabled=again)


def check_finite(what: str, values: Iterable[float | None], step: int, recipe: Recipe) -> None:
    """Raises ValueError, before a checkpoint is made of it."""
    if not all(value is None or math.isfinite(value) for value in values):
        raise ValueError(
            f"the {what} is not a finite number at step {step}; set a lower "
            f"optimizer.learning_rate (it is {recipe.optimizer.learning_rate:g}), or "
            "optimizer.clip_norm=1"
        )


def pretrain_generator(
    state: TrainingState, recipe: Recipe, after: Callable[[int], None] = lambda _: None
) -> None:
    """Teach the generator to keep budgets before the supernet trains: it needs no image.

    Differs from the paper, where both start together and early draws miss their budgets. after: is
    told the number of each step when it is done.
    """
    options = recipe.generator

    def track(steps: range) -> Iterator[int]:
        for step in steps:
            yield step
            state.pretrain_step = step + 1
            after(step + 1)

    fit_to_budgets(
        state.generator,
        state.resource_loss,
        optimizer=state.pretrain_optimizer,
        first_step=state.pretrain_step,
        track=track,
        steps=options.pretrain_steps,
        learning_rate=options.pretrain_learning_rate,
        temperatures=(options.first_temperature, options.last_temperature),
        rng=state.rng,
    )
