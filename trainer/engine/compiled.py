"""CompiledNet: masked forward and backward passes through torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.nets.elastic import AbstractNet
from models.space.relaxed import Relaxed

RunNet = Callable[..., Tensor]
"""Called as an ``AbstractNet``."""
MOST_GRAPHS = 64
"""One for each size of images, and for each part of a batch (``accumulate``)."""


class CompiledNet:
    """Called as the supernet with relaxed archs, it runs compiled kernels on the same parameters.

    Under masks every step has the same graph, whatever was drawn; there is one for each size of
    images, compiled when it is first asked for. A sliced step has another graph for every arch, so
    those are left to the net as it is. The net does not change, nor do the names in its state.

    Numbers differ by rounding: random ones (dropped paths) are those of the net.
    """

    def __init__(self, net: AbstractNet) -> None:
        self._net = net
        # the whole net or an error: a graph that breaks would be slower than none
        self._run: RunNet = torch.compile(  # pyrefly: ignore[no-matching-overload]
            net,
            dynamic=False,
            fullgraph=True,
            recompile_limit=MOST_GRAPHS,  # which the overloads lack
            options={"fallback_random": True},
        )
        self._has_maps = False

    def __call__(self, images: Tensor, relaxed: Relaxed, *normalizer: Any, **how: Any) -> Tensor:
        """Logits, with a graph. Raises ValueError where nothing can be compiled."""
        if not self._has_maps:  # or the first graph would be one that makes them
            with torch.no_grad():
                self._net(images[:2], relaxed)
            self._has_maps = True
        try:
            with warnings.catch_warnings():
                # torch's tracing looks at policies' .grad itself
                warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor")
                return self._run(images, relaxed, *normalizer, **how)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the compiler's own errors have no public name
            raise ValueError(
                f"torch.compile failed: {_words(error)}; it needs a C++ compiler (g++), and Triton "
                "on GPUs; go on without: --set compile=false"
            ) from error


def _words(error: BaseException) -> str:
    """What happened, without the pages around it."""
    cause = getattr(error, "inner_exception", None) or error
    said = (line.strip() for line in str(cause).splitlines())
    return f"{type(cause).__name__}: {next(filter(None, said), 'no reason given')}"
