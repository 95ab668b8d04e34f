"""Probe: what Algorithm 2 may ask of the supernet now and at the update before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from models.arch import Arch
from models.generator import ArchitectureGenerator
from models.nets.elastic import AbstractNet
from models.relaxed import Relaxed
from trainer.evaluate import at_resolution


class Probe:
    """Losses on one batch that no weight is trained on, with w_t and with w_{t-1}.

    BatchNorm normalizes by the batch in both, and nothing is updated by asking.
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
    ) -> None:
        self._net, self._generator, self._before = net, generator, before
        self._images, self._labels = images, labels
        self._noise, self._temperature = noise, temperature

    def generate(self, budget_flops: Tensor) -> Relaxed:
        """The arch that the generator samples for a budget (a scalar tensor), with gradients."""
        policies, _ = self._generator(
            budget_flops[None], noise=self._noise, temperature=self._temperature
        )
        return self._generator.relaxed(policies)

    def loss(self, arch: Arch | Relaxed, *, before: bool) -> Tensor:
        """Cross-entropy of a subnet with the weights of now, or of the update before."""
        chosen = arch.arch() if isinstance(arch, Relaxed) else arch
        images = at_resolution(self._images, self._net.space.resolution(chosen))
        if before:
            logits = functional_call(self._net, dict(self._before), (images, arch))
        else:
            logits = self._net(images, arch)
        return F.cross_entropy(logits.float(), self._labels)
