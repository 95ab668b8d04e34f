"""The forward passes, one torch module for each family of spaces. Uses torch.

A net is written once and never names a size: the same lines run the supernet, a sliced subnet, a
masked one and an extracted one, and are what the ONNX template is exported from.
"""

from __future__ import annotations

import importlib

from models.nets.elastic import AbstractNet
from models.space.arch import Arch
from models.space.search_space import SearchSpace


def build_net(space: SearchSpace, arch: Arch | None = None, *, folded: bool = False) -> AbstractNet:
    """The network of ``arch``, with fresh weights; the largest one is the supernet.

    ``folded``: without BatchNorm, each convolution with a bias instead, as deployed.
    """
    module, _, name = space.net.partition(":")
    return getattr(importlib.import_module(module), name)(space, arch or space.largest, folded)
