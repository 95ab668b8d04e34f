"""BatchProbe: what Algorithm 2 asks of the supernet, answered on one held-out batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from models.generator.network import ArchitectureGenerator
from models.nets.elastic import AbstractNet
from models.nets.normalize import FrozenStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from models.space.relaxed import Relaxed
from trainer.data.batches import Batch
from trainer.engine.horizon import FORWARD_AND_BACKWARD, pass_flops
from trainer.engine.optim import Schedule
from trainer.engine.state import TrainingState
from trainer.ranks import ALONE, Ranks
from trainer.recipes.recipe import Recipe
from trainer.samplers.probe import Probe


@dataclass
class BatchProbe(Probe):
    """Losses on one batch that no weight is trained on, with w_t and with w_{t-1}.

    BatchNorm normalizes by the batch in both, and nothing is updated by asking. images, labels:
    this rank's; losses and gradients are those of the batch of all ranks. accumulate: parts of
    them that run one after another. recompute: as in ``AbstractNet``. frozen: statistics by which
    BatchNorm normalizes instead. compute: multiply-adds spent by asking, on this rank's images
    (``trainer.engine.horizon``).
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
    compute: int = 0

    def generate(self, budget_flops: Tensor) -> Relaxed:
        """The arch that the generator samples for a budget (a scalar tensor), with gradients."""
        budgets = self.ranks.shared(budget_flops)[None]
        policies, _ = self.generator(budgets, noise=self.noise, temperature=self.temperature)
        return self.generator.relaxed(policies)

    def loss(self, arch: Arch | Relaxed, *, before: bool) -> Tensor:
        """Cross-entropy of a subnet with the weights of now, or of the update before."""
        passes = FORWARD_AND_BACKWARD if torch.is_grad_enabled() else 1
        self.compute += passes * pass_flops(self.net.space, arch) * len(self.images)
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
    state: TrainingState, batch: Batch, schedule: Schedule, recipe: Recipe, ranks: Ranks = ALONE
) -> BatchProbe:
    """On a held-out batch, this rank's images of it."""
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
    )
