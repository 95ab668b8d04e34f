"""Probe: what Algorithm 2 may ask of the supernet now and at the update before."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from models.generator.network import ArchitectureGenerator
from models.nets.elastic import AbstractNet
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from models.space.relaxed import Relaxed
from trainer.engine.horizon import FORWARD_AND_BACKWARD
from trainer.engine.ranks import ALONE, Ranks


class Probe:
    """Losses on one batch that no weight is trained on, with w_t and with w_{t-1}.

    BatchNorm normalizes by the batch in both, and nothing is updated by asking. images, labels:
    this rank's; losses and gradients are those of the whole batch. accumulate: parts of them that
    run one after another. recompute: as in ``AbstractNet``.
    """

    def __init__(
        self,
        net: AbstractNet,
        generator: ArchitectureGenerator,
        before: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        noise: torch.Generator,
        temperature: float,
        accumulate: int = 1,
        recompute: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self._net, self._generator, self._before = net, generator, before
        self._images, self._labels = images, labels
        self._noise, self._temperature = noise, temperature
        self._accumulate, self._recompute, self._ranks = accumulate, recompute, ranks
        self.compute = 0
        """Multiply-adds spent by asking, on this rank's images (``trainer.engine.horizon``)."""

    def generate(self, budget_flops: Tensor) -> Relaxed:
        """The arch that the generator samples for a budget (a scalar tensor), with gradients."""
        budgets = self._ranks.shared(budget_flops)[None]
        policies, _ = self._generator(budgets, noise=self._noise, temperature=self._temperature)
        return self._generator.relaxed(policies)

    def loss(self, arch: Arch | Relaxed, *, before: bool) -> Tensor:
        """Cross-entropy of a subnet with the weights of now, or of the update before."""
        space = self._net.space
        flops = space.max_flops if isinstance(arch, Relaxed) else space.flops(arch)
        passes = FORWARD_AND_BACKWARD if torch.is_grad_enabled() else 1
        self.compute += passes * flops * len(self._images)
        run = self._loss
        if self._accumulate > 1:
            # keeps nothing of a part, and runs it again for its gradients
            run = partial(checkpoint, self._loss, use_reentrant=False)
        parts = zip(
            self._images.tensor_split(self._accumulate),
            self._labels.tensor_split(self._accumulate),
            strict=True,
        )
        losses = [
            run(arch, before, images, labels) * (len(images) / len(self._images))
            for images, labels in parts
            if len(images)
        ]
        return self._ranks.average(torch.stack(losses).sum())

    def _loss(self, arch: Arch | Relaxed, before: bool, images: Tensor, labels: Tensor) -> Tensor:
        chosen = arch.arch() if isinstance(arch, Relaxed) else arch
        images = at_resolution(images, self._net.space.resolution(chosen))
        asked = (images, arch, self._ranks.normalizer)
        how = {"recompute": self._recompute}
        if before:
            logits = functional_call(self._net, dict(self._before), asked, how)
        else:
            logits = self._net(*asked, **how)
        return F.cross_entropy(logits.float(), labels)
