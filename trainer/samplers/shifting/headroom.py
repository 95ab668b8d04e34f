"""Drop over headroom: losses that drop by a larger share of what is left of them."""

from __future__ import annotations

import torch

from models.space.arch import Arch
from trainer.samplers.probe import Probe
from trainer.samplers.shifting.shift_direct import ShiftDirect


class Headroom(ShiftDirect):
    """``shift-direct`` with each drop divided by the loss that is left, above zero.

    A large subnet with little left to lose drops less than a small one that learns as well.
    """

    def drop(self, probe: Probe, arch: Arch) -> torch.Tensor:
        now = probe.loss(arch, before=False)
        return (probe.loss(arch, before=True) - now) / now.clamp(min=1e-6)
