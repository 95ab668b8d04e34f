"""BatchProbe: what Algorithm 2 asks of the supernet, answered on one held-out batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from models.generator.network import ArchitectureGenerator
from models.generator.policy import budget_features
from models.nets.elastic import AbstractNet
from models.nets.normalize import FrozenStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from models.space.relaxed import Relaxed
from trainer.data.batches import Batch
from trainer.engine.horizon import FORWARD_AND_BACKWARD, forward_flops, pass_flops
from trainer.engine.optim import Schedule
from trainer.engine.state import TrainingState
from trainer.ranks import ALONE, Ranks
from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.probe import Probe

LEVEL_IMAGES = 1000
"""Of the fixed set on which ``level`` is measured."""


@dataclass
class BatchProbe(Probe):
    """Losses on one batch that no weight is trained on, with w_t and with w_{t-1}.

    BatchNorm normalizes by the batch in both, and nothing is updated by asking. images, labels:
    this rank's; losses and gradients are those of the batch of all ranks. accumulate: parts of
    them that run one after another. recompute: as in ``AbstractNet``. compute: multiply-adds spent
    by asking, on the images of all ranks (``trainer.engine.horizon``). fixed: held-out images in
    their order, the same on every rank. options: by which compute is counted. frozen: statistics
    by which BatchNorm normalizes instead.
    """

    net: AbstractNet
    generator: ArchitectureGenerator
    before: Mapping[str, Tensor]
    images: Tensor
    labels: Tensor
    noise: torch.Generator
    temperature: float
    accumulate: int = 1
    recompute: bool = False
    ranks: Ranks = ALONE
    frozen: FrozenStatistics | None = None
    average: AbstractNet | None = None
    fixed: Iterable[Batch] = ()
    options: SamplerOptions = field(default_factory=SamplerOptions)
    compute: int = 0

    @property
    def served(self) -> AbstractNet:
        """The average of the weights, where there is one."""
        return self.net if self.average is None else self.average

    def generate(self, budget_flops: Tensor) -> Relaxed:
        """The arch that the generator samples for a budget (a scalar tensor), with gradients."""
        budgets = self.ranks.shared(budget_flops)[None]
        policies, _ = self.generator(budgets, noise=self.noise, temperature=self.temperature)
        return self.generator.relaxed(policies)

    def loss(self, arch: Arch | Relaxed, *, before: bool) -> Tensor:
        """Cross-entropy of a subnet with the weights of now, or of the update before."""
        self._count(arch, self._of_all(self.images), trains=torch.is_grad_enabled())
        run = self._loss
        if self.accumulate > 1:
            # keeps nothing of a part, and runs it again for its gradients
            run = partial(checkpoint, self._loss, use_reentrant=False)
        parts = zip(
            self.images.tensor_split(self.accumulate),
            self.labels.tensor_split(self.accumulate),
            strict=True,
        )
        losses = [
            run(arch, before, images, labels) * (len(images) / len(self.images))
            for images, labels in parts
            if len(images)
        ]
        return self.ranks.average(torch.stack(losses).sum())

    def mixing_gradient(
        self, arch: Relaxed, budgets: Sequence[float], *, before: bool
    ) -> tuple[float, Tensor]:
        loss = self.loss(arch, before=before)
        encode, space = self.generator.encode, self.net.space
        # a budget's features enter through one layer, at every decision alike
        (to_encoded,) = torch.autograd.grad(loss, encode.bias, retain_graph=True)
        to_features = encode.weight.detach().T @ to_encoded
        position = (np.asarray(budgets) - space.min_flops) / (space.max_flops - space.min_flops)
        features = torch.from_numpy(budget_features(position, encode.in_features))
        return float(loss.detach()), self.ranks.average(features @ to_features)

    @torch.no_grad()
    def level(self, arch: Arch) -> float:
        total, seen = torch.zeros(()), 0
        resolution = self.net.space.resolution(arch)
        for batch in self.fixed:
            images = at_resolution(batch.images, resolution)
            logits = self.served(images, arch, self.frozen)
            losses = F.cross_entropy(logits, batch.labels, reduction="sum")
            total, seen = total + losses.float().cpu(), seen + len(images)
            self._count(arch, len(images), trains=False)
            if seen >= LEVEL_IMAGES:
                break
        assert seen, "a level is of fixed images"
        return float(self.ranks.average(total / seen))

    def influences(self, archs: Sequence[Arch]) -> list[float]:
        own, others = (
            [self._gradient(arch, half) for arch in archs]
            for half in (slice(0, None, 2), slice(1, None, 2))
        )
        mean = torch.stack(others).mean(0)
        return [float(gradient @ mean) for gradient in own]

    def _of_all(self, images: Tensor) -> int:
        """How many images the ranks have, of which these are this rank's."""
        return len(images) * self.ranks.world_size

    def _count(self, arch: Arch | Relaxed, images: int, *, trains: bool) -> None:
        space, options = self.net.space, self.options
        if trains:
            flops = FORWARD_AND_BACKWARD * pass_flops(space, arch, options.pass_flops)
        else:
            flops = forward_flops(space, arch, options)
        self.compute += images * flops

    def _gradient(self, arch: Arch, part: slice) -> Tensor:
        """Of the loss on a part of the batch, for all weights, in one row."""
        images, labels = self.images[part], self.labels[part]
        loss = self._loss(arch, False, images, labels)
        parameters = list(self.net.parameters())
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        self._count(arch, self._of_all(images), trains=True)
        return self.ranks.average(torch.cat([gradient.flatten() for gradient in found]))

    def _loss(self, arch: Arch | Relaxed, before: bool, images: Tensor, labels: Tensor) -> Tensor:
        chosen = arch.arch() if isinstance(arch, Relaxed) else arch
        images = at_resolution(images, self.net.space.resolution(chosen))
        asked = (images, arch, self.frozen or self.ranks.normalizer)
        how = {"recompute": self.recompute}
        if before:
            logits = functional_call(self.net, dict(self.before), asked, how)
        else:
            logits = self.net(*asked, **how)
        return F.cross_entropy(logits.float(), labels)


def probe_of(
    state: TrainingState,
    batch: Batch,
    schedule: Schedule,
    recipe: Recipe,
    fixed: Iterable[Batch],
    ranks: Ranks = ALONE,
) -> BatchProbe:
    """On a held-out batch, this rank's images of it. fixed: as in ``BatchProbe``."""
    return BatchProbe(
        state.net,
        state.generator,
        state.before,
        batch.images.to(recipe.device),
        batch.labels.to(recipe.device),
        noise=state.rng,
        temperature=schedule.temperature,
        accumulate=recipe.accumulate,
        recompute=recipe.activation_checkpointing,
        ranks=ranks,
        frozen=state.frozen,
        average=None if state.average is None else state.average.net,
        fixed=fixed,
        options=recipe.sampler_options,
    )
