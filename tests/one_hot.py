"""Archs as the policies that the generator would give for them."""

from __future__ import annotations

import torch

from models.space.arch import Arch
from models.space.relaxed import Relaxed
from models.space.search_space import SearchSpace


def relax(space: SearchSpace, arch: Arch) -> Relaxed:
    """The one-hot policies of an arch."""
    return Relaxed(
        space,
        {
            d.name: torch.tensor([float(choice == arch[d.name]) for choice in d.choices])
            for d in space.decisions
        },
    )
