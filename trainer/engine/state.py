"""TrainingState: all that a resumed run needs, in one place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.generator.network import ArchitectureGenerator
from models.generator.resource_loss import ResourceLoss
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.nets.normalize import FrozenStatistics
from models.space.weights import SharedStatistics
from models.spaces import get_space
from trainer.data.splits import Splits
from trainer.engine.average import WeightAverage
from trainer.engine.checkpoint import State
from trainer.engine.compiled import CompiledNet
from trainer.engine.optim import (
    Schedule,
    build_generator_optimizer,
    build_optimizer,
    set_learning_rate,
)
from trainer.engine.teacher import Teacher, open_teacher
from trainer.engine.teacher_memory import TeacherMemory, memory_of
from trainer.engine.trained_on import in_words, refuse_other_data
from trainer.recipes.recipe import Recipe
from trainer.samplers import AbstractSampler, build_sampler


@dataclass
class TrainingState:
    """What training changes.

    before: the weights at the last update of the distribution, w_{t-1} of Algorithm 2. average: of
    the weights, where the recipe has one. compiled: runs masks on the net's weights, where the
    recipe compiles. frozen: BatchNorm's statistics that do not move, where the recipe keeps those
    of its start. teacher: a network that does not learn. memory: what it has said, where the recipe
    asks it a few times only. rng: every random number that decides a
    subnet comes from this CPU generator.
    scaler: of gradients; does nothing unless the precision is fp16. trained_on: the data, in words.
    drawn: FLOPs and loss of the subnets trained since the log's last record of a step, which the
    next one tells. pretrain_step, pretrain_optimizer: of the generator, before the first step.
    evaluation_due: of these weights; a signal came in between. skipped_steps: whose gradients
    overflowed. compute: multiply-adds spent (``horizon``). elapsed_s: of the processes before this
    one. The place in the data is
    ``step``: batches are functions of it.
    """

    net: AbstractNet
    generator: ArchitectureGenerator
    resource_loss: ResourceLoss
    sampler: AbstractSampler
    optimizer: torch.optim.Optimizer
    generator_optimizer: torch.optim.Optimizer
    pretrain_optimizer: torch.optim.Optimizer
    rng: torch.Generator
    scaler: torch.amp.GradScaler
    trained_on: str
    before: Mapping[str, Tensor] = field(default_factory=dict)
    average: WeightAverage | None = None
    compiled: CompiledNet | None = None
    frozen: FrozenStatistics | None = None
    teacher: Teacher | None = None
    memory: TeacherMemory | None = None
    drawn: list[tuple[int, float]] = field(default_factory=list)
    evaluation_due: bool = False
    pretrain_step: int = 0
    step: int = 0
    compute: int = 0
    skipped_steps: int = 0
    elapsed_s: float = 0.0
    started_at: float = field(default_factory=time.monotonic)

    @property
    def total_s(self) -> float:
        """Seconds of training so far, since the first step."""
        return self.elapsed_s + time.monotonic() - self.started_at

    @property
    def served_net(self) -> AbstractNet:
        """What is evaluated, calibrated and bundled: the average where there is one."""
        return self.net if self.average is None else self.average.net

    def begin(self, schedule: Schedule) -> None:
        """Set the learning rates of a step, and all gradients to zero."""
        set_learning_rate(self.optimizer, schedule.learning_rate)
        set_learning_rate(self.generator_optimizer, schedule.generator_learning_rate)
        self.optimizer.zero_grad()
        self.generator_optimizer.zero_grad()

    def descend(self, clip_norm: float) -> None:
        """Move weights and generator along the gradients, each unless its own overflowed.

        The average follows in a step in which none did.
        What no subnet of the step used has zero gradients, be it a channel or a whole block: weight
        decay and momentum act on all of the supernet. clip_norm: of the weights' gradient, 0 for
        none.
        """
        for parameter in self.net.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimizers = (self.optimizer, self.generator_optimizer)
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), clip_norm)
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        scale = self.scaler.get_scale()
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        skipped = self.scaler.get_scale() < scale
        self.skipped_steps += skipped
        self.step += 1
        if self.average is not None and not skipped:
            self.average.update(self.net)

    def keep_weights(self) -> None:
        """Take the weights of now as those that the next update compares with."""
        if self.sampler.learns:
            self.before = {name: p.detach().clone() for name, p in self.net.named_parameters()}

    def to_checkpoint(self) -> State:
        """Everything, by name."""
        return {
            "step": self.step,
            "compute": self.compute,
            "elapsed_s": self.total_s,
            "net": self.net.state_dict(),
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "pretrain_optimizer": self.pretrain_optimizer.state_dict() if self.step == 0 else None,
            "pretrain_step": self.pretrain_step,
            "sampler": self.sampler.state(),
            "rng": self.rng.get_state(),
            "scaler": self.scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "drawn": list(self.drawn),
            "evaluation_due": self.evaluation_due,
            "before": dict(self.before),
            "average": None if self.average is None else self.average.state(),
            "memory": None if self.memory is None else self.memory.state(),
            "trained_on": self.trained_on,
            "frozen": None if self.frozen is None else statistics_to_tensors(self.frozen.shared),
        }

    def load(self, state: State) -> None:
        """The reverse of ``to_checkpoint``. Raises ValueError for a checkpoint of other data.

        An average that the checkpoint lacks starts at its weights.
        """
        refuse_other_data(state, self.trained_on)
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        self.net.load_state_dict(state["net"])
        self.generator.load_state_dict(state["generator"])
        # learning rates are set in every step; these are the recipe's, which may have changed
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.pretrain_step = int(state.get("pretrain_step", 0))
        if state.get("pretrain_optimizer"):
            self.pretrain_optimizer.load_state_dict(state["pretrain_optimizer"])
        self.sampler.load_state(state["sampler"])
        self.rng.set_state(state["rng"])
        self.compute = int(state.get("compute", 0))
        self.skipped_steps = int(state.get("skipped_steps", 0))
        self.drawn = [(int(flops), float(loss)) for flops, loss in state.get("drawn", ())]
        self.evaluation_due = bool(state.get("evaluation_due", False))
        if state.get("scaler"):  # empty after another precision
            self.scaler.load_state_dict(state["scaler"])
        device = next(self.net.parameters()).device
        self.before = {name: tensor.to(device) for name, tensor in state["before"].items()}
        if self.average is not None:
            begun = {"net": state["net"], "updates": 0}
            self.average.load_state(state.get("average") or begun)
        if self.memory is not None:
            self.memory.load_state(state.get("memory"))
        self.frozen = frozen_of(state, device)


def statistics_to_tensors(shared: SharedStatistics) -> State:
    """For a checkpoint."""
    norms = {k: torch.from_numpy(np.stack(pair)) for k, pair in shared.norms.items()}
    return {"norms": norms, "centres": {k: torch.from_numpy(v) for k, v in shared.centres.items()}}


def frozen_of(checkpoint: State, device: str | torch.device) -> FrozenStatistics | None:
    """The statistics that a checkpoint's run keeps, if it keeps any."""
    kept = checkpoint.get("frozen")
    if kept is None:
        return None
    norms = {k: (pair[0].numpy(), pair[1].numpy()) for k, pair in kept["norms"].items()}
    centres = {k: centre.numpy() for k, centre in kept["centres"].items()}
    return FrozenStatistics(SharedStatistics(norms, centres), device)


def fresh_state(recipe: Recipe, splits: Splits) -> TrainingState:
    """Untrained; the same for the same recipe."""
    space = get_space(recipe.space, len(splits.labels))
    torch.manual_seed(recipe.seed)
    net = build_net(space).to(recipe.device)
    net = net.to(memory_format=torch.channels_last)
    generator = ArchitectureGenerator(space)
    state = TrainingState(
        net=net,
        generator=generator,
        resource_loss=ResourceLoss(
            recipe.generator.resource_weight,
            recipe.generator.resource_batch,
            recipe.generator.entropy_weight,
        ),
        sampler=build_sampler(recipe.sampler, space, recipe.sampler_options),
        optimizer=build_optimizer(net, recipe.optimizer),
        generator_optimizer=build_generator_optimizer(generator, recipe.generator.learning_rate),
        pretrain_optimizer=build_generator_optimizer(
            generator, recipe.generator.pretrain_learning_rate
        ),
        rng=torch.Generator().manual_seed(recipe.seed),
        scaler=torch.amp.GradScaler(
            torch.device(recipe.device).type, enabled=recipe.precision == "fp16"
        ),
        trained_on=in_words(splits),
        average=WeightAverage(net, recipe.ema) if recipe.ema else None,
        compiled=CompiledNet(net) if recipe.compile else None,
        teacher=open_teacher(recipe, splits.labels),
        memory=memory_of(recipe.distillation, len(splits.train), len(splits.labels)),
    )
    state.keep_weights()
    return state
